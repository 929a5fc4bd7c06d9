"""addresses-changed: the guest has other IP addresses than before.

The kernel tells by netlink (rtnetlink(7)) that some address came, went or was renewed. That is only the sign
to look: what is told is the difference between two looks with the C library's getifaddrs(3). So a lease that
is renewed is no event, messages that were lost (ENOBUFS) do no harm, and nothing of what came has to be
believed.

No netlink library: the kept one, pyroute2, takes more memory to import than is left to this agent
(docs/architecture.md), and there would be nothing for it to decode.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

import trio

from virtagent_protocol.values import Struct, Value

from ...methods.qga.ifaddrs import addresses
from .source import Emit, plain

#: Multicast groups of rtnetlink (linux/rtnetlink.h) that Python does not name.
RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
#: Seconds from the first sign to the look: what changes together (DHCP) is one event, and a flood is few.
SETTLE_TIME = 0.5
#: Addresses in each list of an event. The rest is counted.
LISTED_MAX = 32

_READ_SIZE = 1 << 16

#: Interface, address, length of its prefix.
Entry = tuple[str, str, int]


def present() -> frozenset[Entry]:
    """Return the addresses that the guest has now; those of the loopback are not worth telling.

    Raises:
        OSError: the kernel could not be asked.
    """
    return frozenset(
        (each.interface, each.ip, each.prefix)
        for each in addresses()
        if each.ip is not None and not ip_address(each.ip).is_loopback
    )


def difference(before: frozenset[Entry], now: frozenset[Entry]) -> Struct | None:
    """Return the data of an event, or None if nothing has changed."""
    added, removed = sorted(now - before), sorted(before - now)
    if not added and not removed:
        return None
    more = max(len(added) - LISTED_MAX, 0) + max(len(removed) - LISTED_MAX, 0)
    return {"added": _listed(added), "removed": _listed(removed), "more": more}


def _listed(entries: list[Entry]) -> list[Value]:
    return [
        {"interface": plain(interface), "address": address, "prefix": prefix}
        for interface, address, prefix in entries[:LISTED_MAX]
    ]


async def watch_addresses(emit: Emit) -> None:
    """Tell of changes until cancelled.

    Raises:
        OSError: there is no netlink here.
    """
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as signs:
        signs.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        before = present()
        while True:
            await trio.lowlevel.wait_readable(signs)
            await trio.sleep(SETTLE_TIME)
            _read_off(signs)
            now = present()
            data = difference(before, now)
            before = now
            if data is not None:
                emit("addresses-changed", data)


def _read_off(signs: socket.socket) -> None:
    # Bounded by what the socket's buffer holds: no more than that is read, though more may come meanwhile.
    for _ in range(1024):
        try:
            signs.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            # ENOBUFS: signs were lost. One was enough.
            continue
