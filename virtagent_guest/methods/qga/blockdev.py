"""Where a block device is: its node, and the hardware it lies on, from sysfs and udev's database.

The rules follow qemu-ga's, since clients match the addresses with what they know of the VM: how a bus counts
its units depends on the driver of its controller.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from virtagent_protocol.values import Struct

SYS = Path("/sys")
UDEV = Path("/run/udev/data")

#: Driver of the controller → bus type.
_PCI_DRIVERS = {
    "ata_piix": "ide",
    "sym53c8xx": "scsi",
    "virtio-pci": "virtio",
    "ahci": "sata",
    "nvme": "nvme",
    "xhci_hcd": "usb",
    "ehci-pci": "usb",
}
_PCI = re.compile(r"/([0-9a-f]+):([0-9a-f]+):([0-9a-f]+)\.([0-9a-f]+)(?=/|$)")
_PCI_ROOT = re.compile(r".*/devices/pci[0-9a-f]+:[0-9a-f]+")
_TARGET = re.compile(r"/target\d+:\d+:\d+/\d+:(\d+):(\d+):(\d+)")
_ATA, _HOST = re.compile(r"(.*)/ata(\d+)"), re.compile(r"(.*)/host(\d+)")
#: The subchannel, then the channel subsystem, subchannel set and number of the device.
_CCW = re.compile(
    r"/devices/css[0-9a-f]+/[0-9a-f]+\.[0-9a-f]+\.([0-9a-f]+)/([0-9a-f]+)\.([0-9a-f]+)\.([0-9a-f]+)/"
)

#: How deep volumes lie on volumes. The kernel has no loops in it, but it may change under us.
_DEPTH_MAX = 16


def syspath(entry: Path) -> Path | None:
    """Return where the device of a link in sysfs really is; None if it is gone."""
    try:
        return entry.resolve(strict=True)
    except OSError:
        return None


def node(device: Path) -> str | None:
    """Return the device node of a device in sysfs, such as ``/dev/vda``."""
    name = _properties(device / "uevent", "").get("DEVNAME")
    return None if name is None else f"/dev/{name}"


def udev_property(device: Path, name: str) -> str | None:
    """Return what udev knows of a block device by this name."""
    try:
        number = (device / "dev").read_text("ascii").strip()
    except OSError:
        return None
    return _properties(UDEV / f"b{number}", "E:").get(name) or None


def is_virtual(device: Path) -> bool:
    """Whether a device has no hardware of its own: a logical volume, a loop device."""
    return "/devices/virtual/block/" in f"{device}/"


def underlying(device: Path) -> list[Path]:
    """Return the devices on which a virtual one lies."""
    try:
        entries = sorted((device / "slaves").iterdir())
    except OSError:
        return []
    return [found for entry in entries if (found := syspath(entry)) is not None]


def disk_addresses(device: Path, depth: int = 0) -> list[Struct]:
    """Return the schema's GuestDiskAddress of each disk on which a device lies; those that cannot be told are
    missing."""
    if is_virtual(device):
        if depth >= _DEPTH_MAX:
            return []
        # The last one first, as qemu-ga does.
        below = [address for lower in underlying(device) for address in disk_addresses(lower, depth + 1)]
        return below[::-1] if depth == 0 else below
    address: Struct = {
        "pci-controller": {"domain": -1, "bus": -1, "slot": -1, "function": -1},
        "bus-type": "unknown",
        "bus": 0,
        "target": 0,
        "unit": 0,
    }
    if (dev := node(device)) is not None:
        address["dev"] = dev
    if (serial := udev_property(device, "ID_SERIAL")) is not None:
        address["serial"] = serial
    known = _locate(str(device), address)
    return [address] if known or dev or serial else []


def _locate(path: str, address: Struct) -> bool:
    """Fill in what the path says; return whether that is something."""
    if "/devices/pci" in path:
        return _locate_pci(path, address)
    if (match := _CCW.search(path)) is not None:
        names = ("subchno", "cssid", "ssid", "devno")
        address["ccw-address"] = {
            name: int(number, 16) for name, number in zip(names, match.groups(), strict=True)
        }
        if "/virtio" in path:
            _locate_virtio(path, address)
        return True
    return _locate_virtio(path, address)


def _locate_virtio(path: str, address: Struct) -> bool:
    if "/virtio" not in path or "/block" not in path:
        return False
    if (match := _TARGET.search(path)) is not None:
        bus, target, unit = (int(number) for number in match.groups())
        address.update({"bus-type": "scsi", "bus": bus, "target": target, "unit": unit})
    else:
        address["bus-type"] = "virtio"
    return True


def _locate_pci(path: str, address: Struct) -> bool:
    controller = _controller(path)
    if controller is None:
        return False
    function, driver = controller
    target, host = _TARGET.search(path), _ATA.match(path) or _HOST.match(path)
    place: Struct = {}
    if driver in ("ata_piix", "ahci"):
        # A host for each bus, or for each port: what counts is which of its controller's it is.
        index = _index(host, "ata" if "/ata" in path else "host") if host and target else None
        if index is None or target is None:
            return False
        place = {"bus": index, "unit": int(target[2])} if driver == "ata_piix" else {"unit": index}
    elif driver == "sym53c8xx":
        if target is None:
            return False
        place = {"unit": int(target[2])}
    elif driver == "virtio-pci" and target is not None:
        place = {"bus-type": "scsi", "unit": int(target[3])}
    names = ("domain", "bus", "slot", "function")
    address["pci-controller"] = {name: int(number, 16) for name, number in zip(names, function, strict=True)}
    address["bus-type"] = _PCI_DRIVERS[driver]
    address.update(place)
    return True


def _controller(path: str) -> tuple[tuple[str, ...], str] | None:
    """Return the PCI address of the first function on the path with a driver that we know, and the driver."""
    root = _PCI_ROOT.match(path)
    position = root.end() if root else len(path)
    while (match := _PCI.match(path, position)) is not None:
        position = match.end()
        try:
            driver = os.path.basename(os.readlink(f"{path[:position]}/driver"))
        except OSError:
            continue
        if driver in _PCI_DRIVERS:
            return match.groups(), driver
    return None


def _index(host: re.Match[str], kind: str) -> int | None:
    """Return which of its controller's hosts this is."""
    try:
        entries = os.listdir(host[1])
    except OSError:
        return None
    numbers = sorted(int(name[len(kind) :]) for name in entries if re.fullmatch(rf"{kind}\d+", name))
    return numbers.index(int(host[2])) if int(host[2]) in numbers else None


def _properties(file: Path, prefix: str) -> dict[str, str]:
    """Read lines of ``prefix NAME=VALUE``; none from a file that is not there."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line[len(prefix) :].partition("=") for line in lines if line.startswith(prefix))
    return {name: value for name, equals, value in pairs if equals}
