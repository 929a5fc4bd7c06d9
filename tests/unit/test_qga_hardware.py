"""What guest-get-disks and its like read of disks, network and load (virtagent_guest.methods.qga)."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from virtagent_guest.methods.qga import blockdev, disks, network, nvme
from virtagent_guest.methods.qga.ifaddrs import Address
from virtagent_guest.methods.qga.load import cpustats
from virtagent_protocol.values import Struct

PCI = "devices/pci0000:00/0000:00"


class Sysfs:
    """A tree like /sys, and udev's database beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.udev = root / "udev"
        for directory in ("block", "dev/block", "udev"):
            (root / directory).mkdir(parents=True)

    def disk(self, path: str, number: str, **properties: str) -> Path:
        """Make a block device at this path, listed in /sys/block."""
        device = self._device(path, number, properties)
        (self.root / "block" / device.name).symlink_to(device)
        return device

    def partition(self, disk: Path, name: str, number: str, **properties: str) -> Path:
        return self._device(f"{disk.relative_to(self.root)}/{name}", number, properties)

    def driver(self, path: str, name: str) -> None:
        device = self.root / path
        device.mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(f"/nowhere/drivers/{name}")

    def _device(self, path: str, number: str, properties: dict[str, str]) -> Path:
        device = self.root / path
        device.mkdir(parents=True)
        (device / "dev").write_text(f"{number}\n")
        (device / "size").write_text("2048\n")
        (device / "uevent").write_text(f"MAJOR=8\nDEVNAME={device.name}\nDEVTYPE=disk\n")
        (self.root / "dev/block" / number).symlink_to(device)
        lines = ["I:123", *(f"E:{name}={value}" for name, value in properties.items())]
        (self.udev / f"b{number}").write_text("\n".join(lines))
        return device


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    made = Sysfs(tmp_path)
    monkeypatch.setattr(blockdev, "SYS", tmp_path)
    monkeypatch.setattr(blockdev, "UDEV", made.udev)
    return made


def address(bus_type: str, slot: int, *, bus: int = 0, target: int = 0, unit: int = 0, dev: str) -> Struct:
    controller: Struct = {"domain": 0, "bus": 0, "slot": slot, "function": 0}
    return {
        "pci-controller": controller,
        "bus-type": bus_type,
        "bus": bus,
        "target": target,
        "unit": unit,
        "dev": dev,
    }


def test_a_virtio_disk_is_found_with_its_serial_and_partition(sysfs: Sysfs) -> None:
    sysfs.driver(f"{PCI}:04.0", "virtio-pci")
    disk = sysfs.disk(f"{PCI}:04.0/virtio1/block/vda", "254:0", ID_SERIAL="abc")
    sysfs.partition(disk, "vda1", "254:1", ID_SERIAL="abc")
    (disk / "queue").mkdir()
    assert disks.disks() == [
        {"name": "/dev/vda1", "partition": True, "dependencies": ["/dev/vda"]},
        {
            "name": "/dev/vda",
            "partition": False,
            "address": {**address("virtio", 4, dev="/dev/vda"), "serial": "abc"},
        },
    ]


def test_a_disk_behind_a_bridge_has_the_address_of_its_controller(sysfs: Sysfs) -> None:
    sysfs.driver(f"{PCI}:02.0", "pcieport")
    sysfs.driver(f"{PCI}:02.0/0000:01:00.0", "nvme")
    disk = sysfs.disk(f"{PCI}:02.0/0000:01:00.0/nvme/nvme0/nvme0n1", "259:0")
    (found,) = blockdev.disk_addresses(disk)
    assert found["bus-type"] == "nvme"
    assert found["pci-controller"] == {"domain": 0, "bus": 1, "slot": 0, "function": 0}


@pytest.mark.parametrize(
    ("driver", "path", "others", "expected"),
    [
        ("ata_piix", "ata2/host1/target1:0:1/1:0:1:0", ["ata1"], {"bus-type": "ide", "bus": 1, "unit": 1}),
        ("ahci", "ata9/host8/target8:0:0/8:0:0:0", ["ata7", "ata8"], {"bus-type": "sata", "unit": 2}),
        ("sym53c8xx", "host2/target2:0:3/2:0:3:0", [], {"bus-type": "scsi", "unit": 3}),
        ("virtio-pci", "virtio2/host2/target2:0:0/2:0:0:5", [], {"bus-type": "scsi", "unit": 5}),
        ("xhci_hcd", "usb1/1-1/host3/target3:0:0/3:0:0:0", [], {"bus-type": "usb"}),
    ],
)
def test_units_are_counted_as_the_bus_has_them(
    sysfs: Sysfs, driver: str, path: str, others: list[str], expected: Struct
) -> None:
    sysfs.driver(f"{PCI}:05.0", driver)
    for other in others:
        (sysfs.root / f"{PCI}:05.0" / other).mkdir()
    (found,) = blockdev.disk_addresses(sysfs.disk(f"{PCI}:05.0/{path}/block/sda", "8:0"))
    assert found == {**address("unknown", 5, dev="/dev/sda"), **expected}


def test_a_volume_has_the_addresses_of_all_disks_it_lies_on(sysfs: Sysfs) -> None:
    for slot, name in ((4, "vda"), (5, "vdb")):
        sysfs.driver(f"{PCI}:0{slot}.0", "virtio-pci")
        sysfs.disk(f"{PCI}:0{slot}.0/virtio{slot}/block/{name}", f"254:{slot}")
    volume = sysfs.disk("devices/virtual/block/dm-0", "253:0", DM_NAME="vg-root")
    (volume / "slaves").mkdir()
    for name in ("vda", "vdb"):
        (volume / "slaves" / name).symlink_to(sysfs.root / "block" / name)
    found = blockdev.disk_addresses(volume)
    assert [entry["dev"] for entry in found] == ["/dev/vdb", "/dev/vda"]
    (described,) = (disk for disk in disks.disks() if disk["name"] == "/dev/dm-0")
    assert described == {
        "name": "/dev/dm-0",
        "partition": False,
        "dependencies": ["/dev/vda", "/dev/vdb"],
        "alias": "vg-root",
    }


def test_a_mainframes_disk_has_the_address_of_its_channel(sysfs: Sysfs) -> None:
    disk = sysfs.disk("devices/css0/0.0.0007/0.1.000a/virtio4/block/vda", "252:0")
    (found,) = blockdev.disk_addresses(disk)
    assert found["ccw-address"] == {"cssid": 0, "ssid": 1, "subchno": 7, "devno": 10}
    assert found["bus-type"] == "virtio"


def test_a_disk_without_a_size_is_none(sysfs: Sysfs) -> None:
    loop = sysfs.disk("devices/virtual/block/loop0", "7:0")
    (loop / "size").write_text("0\n")
    assert disks.disks() == []


def test_counters_of_a_disk_are_named_as_far_as_the_kernel_has_them() -> None:
    numbers = [str(number) for number in range(1, 18)]
    for count, last in ((11, "weight-ticks"), (15, "discard-ticks"), (17, "flush-ticks")):
        (entry,) = disks.diskstats(f" 254       0 vda {' '.join(numbers[:count])}\n")
        assert (entry["name"], entry["major"], entry["minor"]) == ("vda", 254, 0)
        stats = entry["stats"]
        assert isinstance(stats, dict)
        assert (len(stats), stats[last], stats["read-sectors"], stats["write-ios"]) == (count, count, 3, 5)


def test_the_health_of_an_nvme_disk_is_read_from_its_log() -> None:
    log = struct.pack("<BHBBB", 4, 300, 100, 10, 7).ljust(32, b"\0")
    log += b"".join(struct.pack("<QQ", number, number + 100) for number in range(10)) + bytes(300)
    health = nvme.read_log(log)
    assert (health["critical-warning"], health["temperature"], health["percentage-used"]) == (4, 300, 7)
    assert (health["data-units-read-lo"], health["data-units-read-hi"]) == (0, 100)
    assert (health["number-of-error-log-entries-lo"], health["power-cycles-hi"]) == (9, 105)
    assert len(health) == 5 + 2 * 10


def test_what_is_no_nvme_disk_has_no_health() -> None:
    assert nvme.smart_log("/dev/null") is None
    assert nvme.smart_log("/dev/no-such") is None


def test_times_of_cpus_are_in_milliseconds() -> None:
    stat = "cpu  9 9 9 9\ncpu0 1 2 3 4 5 6 7 8 9 10 11\ncpu1 1 2 3 4\nintr 5\ncpux 1 2 3 4\n"
    first, second = cpustats(stat, 100)
    assert (first["type"], first["cpu"], first["user"], first["guestnice"]) == ("linux", 0, 10, 100)
    assert second == {"type": "linux", "cpu": 1, "user": 10, "nice": 20, "system": 30, "idle": 40}


@pytest.mark.skipif(sys.byteorder != "little", reason="the table below is a little-endian machine's")
def test_routes_are_read_for_both_protocols() -> None:
    header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    (route,) = network.routes4(
        header + "eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00FFFFFF\t0\t0\t0\nrubbish\n"
    )
    assert json.dumps(route) == json.dumps(
        {
            "iface": "eth0",
            "destination": "0.0.0.0",
            "gateway": "192.168.2.1",
            "mask": "255.255.255.0",
            "metric": 100,
            "flags": 3,
            "refcnt": 0,
            "use": 0,
            "mtu": 0,
            "window": 0,
            "irtt": 0,
            "version": 4,
        }
    )
    zero = "0" * 32
    (six,) = network.routes6(f"fe80{'0' * 28} 40 {zero} 00 {zero} ffffffff 00000001 00000002 80200001 lo\n")
    assert (six["destination"], six["desprefixlen"], six["nexthop"]) == ("fe80::", "64", "::")
    assert (six["metric"], six["flags"], six["version"], six["iface"]) == (-1, 0x80200001, 6, "lo")


def test_an_interface_has_its_addresses_counters_and_hardware_address() -> None:
    dev = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes\n"
        "  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
    )
    found = network.interfaces(
        [
            Address("eth0", hardware="52:54:00:12:34:56"),
            Address("tun0"),
            Address("eth0", "10.0.2.15", 24),
            Address("eth0:1", "10.0.2.16", 24),
            Address("eth0", "fe80::1", 64, 6),
        ],
        network.counters(dev),
    )
    counted = {
        "rx-bytes": 1,
        "rx-packets": 2,
        "rx-errs": 3,
        "rx-dropped": 4,
        "tx-bytes": 9,
        "tx-packets": 10,
        "tx-errs": 11,
        "tx-dropped": 12,
    }
    assert found == [
        {
            "name": "eth0",
            "statistics": counted,
            "ip-addresses": [
                {"ip-address": "10.0.2.15", "ip-address-type": "ipv4", "prefix": 24},
                {"ip-address": "fe80::1", "ip-address-type": "ipv6", "prefix": 64},
            ],
            "hardware-address": "52:54:00:12:34:56",
        },
        {"name": "tun0"},
        {
            "name": "eth0:1",
            "ip-addresses": [{"ip-address": "10.0.2.16", "ip-address-type": "ipv4", "prefix": 24}],
            "hardware-address": "52:54:00:12:34:56",
        },
    ]
