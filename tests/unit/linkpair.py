"""Two links over an in-memory stream pair, for tests of everything above the transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio
import trio.testing

from virtagent_protocol.errors import LinkBroken
from virtagent_protocol.limits import Settings
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent, LinkState, Status
from virtagent_protocol.registry import Registry
from virtagent_protocol.session import Role

MemoryStream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


def ready(status: Status) -> bool:
    return status.state is LinkState.READY


def make_link(role: Role, registry: Registry | None = None, settings: Settings | None = None) -> Link:
    link = Link(role, f"test-{role.value} 1.0", registry or Registry(), boot_id="boot-1", settings=settings)
    link.hint(LinkEvent.PORT_OPENED, "test")
    return link


@dataclass
class Pair:
    """Both links, and both ends of the wire between them."""

    host: Link
    guest: Link
    host_stream: MemoryStream
    guest_stream: MemoryStream
    nursery: trio.Nursery


async def run_quietly(link: Link, stream: trio.abc.Stream) -> None:
    with suppress(LinkBroken):
        await link.run(stream)


@asynccontextmanager
async def linked(
    host: Link, guest: Link, channel: Callable[[MemoryStream], trio.abc.Stream] = lambda stream: stream
) -> AsyncIterator[Pair]:
    """Run both links on a new stream pair and wait until both are ready.

    Args:
        channel: makes what the guest reads and writes from its end of the pair.
    """
    host_stream, guest_stream = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_quietly, host, host_stream)
        nursery.start_soon(run_quietly, guest, channel(guest_stream))
        await host.wait_for(ready)
        await guest.wait_for(ready)
        yield Pair(host, guest, host_stream, guest_stream, nursery)
        nursery.cancel_scope.cancel()
