"""guest-network-get-interfaces, guest-network-get-route: the guest's network, as the kernel has it."""

from __future__ import annotations

import sys
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop

from virtagent_protocol.values import Struct, Value

from ...stats.network import interface_counters
from .command import CommandRegistry, in_thread
from .ifaddrs import Address, addresses

registry = CommandRegistry()

DEV = Path("/proc/net/dev")
ROUTE4, ROUTE6 = Path("/proc/net/route"), Path("/proc/net/ipv6_route")

#: Counter → member.
_STATISTICS = {
    "rx_bytes": "rx-bytes",
    "rx_packets": "rx-packets",
    "rx_errors": "rx-errs",
    "rx_dropped": "rx-dropped",
    "tx_bytes": "tx-bytes",
    "tx_packets": "tx-packets",
    "tx_errors": "tx-errs",
    "tx_dropped": "tx-dropped",
}


@registry.command("guest-network-get-interfaces")
async def get_interfaces() -> list[Value]:
    """Return the network interfaces with their hardware and IP addresses and counters."""
    return [*await in_thread(lambda: interfaces(addresses(), counters(DEV.read_text())))]


@registry.command("guest-network-get-route")
async def get_route() -> list[Value]:
    """Return the routing tables of IPv4 and IPv6."""
    return [*routes4(_content(ROUTE4)), *routes6(_content(ROUTE6))]


def interfaces(found: list[Address], counted: dict[str, Struct]) -> list[Struct]:
    """Return the schema's GuestNetworkInterface for each interface, in the order of their first addresses."""
    result: dict[str, Struct] = {}
    hardware: dict[str, str] = {}
    for address in found:
        entry = result.setdefault(address.interface, {"name": address.interface})
        if address.interface in counted:
            entry["statistics"] = {**counted[address.interface]}
        if address.hardware is not None:
            hardware[address.interface] = address.hardware
        elif address.ip is not None:
            listed = entry.setdefault("ip-addresses", [])
            assert isinstance(listed, list)
            listed.append(
                {
                    "ip-address": address.ip,
                    "ip-address-type": f"ipv{address.version}",
                    "prefix": address.prefix,
                }
            )
    for name, entry in result.items():
        # "eth0:1" is a label of an address of eth0.
        if (mac := hardware.get(name.partition(":")[0])) is not None:
            entry["hardware-address"] = mac
    return list(result.values())


def counters(dev: str) -> dict[str, Struct]:
    """Read /proc/net/dev: interface → GuestNetworkInterfaceStat."""
    return {
        name: {_STATISTICS[counter]: number for counter, number in counted.items()}
        for name, counted in interface_counters(dev).items()
    }


def routes4(table: str) -> list[Struct]:
    """Read /proc/net/route, whose addresses are hexadecimal in the byte order of the machine."""
    result: list[Struct] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 11:
            continue
        interface, destination, gateway, flags, refcnt, use, metric, mask, mtu, window, irtt = fields[:11]
        result.append(
            {
                "iface": interface,
                "destination": _ipv4(destination),
                "gateway": _ipv4(gateway),
                "mask": _ipv4(mask),
                "metric": int(metric),
                "flags": int(flags, 16),
                "refcnt": int(refcnt),
                "use": int(use),
                "mtu": int(mtu),
                "window": int(window),
                "irtt": int(irtt),
                "version": 4,
            }
        )
    return result


def routes6(table: str) -> list[Struct]:
    """Read /proc/net/ipv6_route.

    Metric, reference count and use are signed 32-bit numbers in the schema's only implementation, so that
    the greatest metric is -1. The flags are not: there it shows them with 32 more bits set.
    """
    result: list[Struct] = []
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 10:
            continue
        destination, length, source, source_length, next_hop, metric, refcnt, use, flags = fields[:9]
        result.append(
            {
                "iface": fields[9],
                "destination": _ipv6(destination),
                "desprefixlen": str(int(length, 16)),
                "source": _ipv6(source),
                "srcprefixlen": str(int(source_length, 16)),
                "nexthop": _ipv6(next_hop),
                "metric": _signed(metric),
                "flags": int(flags, 16),
                "refcnt": _signed(refcnt),
                "use": _signed(use),
                "version": 6,
            }
        )
    return result


def _content(table: Path) -> str:
    try:
        return table.read_text("ascii")
    except FileNotFoundError:
        return ""  # this kernel has no such protocol


def _ipv4(text: str) -> str:
    return inet_ntop(AF_INET, int(text, 16).to_bytes(4, sys.byteorder))


def _ipv6(text: str) -> str:
    return inet_ntop(AF_INET6, bytes.fromhex(text))


def _signed(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text.zfill(8)), "big", signed=True)
