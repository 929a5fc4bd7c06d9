"""A link to a guest's agent, with no va-host in between.

On the second serial line of a guest an agent may run beside the one of the virtio-serial port, as a unit of
its own that `systemd-run` makes. It is root without the limits that the installed unit sets.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.guest.vm import Vm
from virtagent_protocol.errors import LinkBroken, RemoteFault, SessionReset
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkState
from virtagent_protocol.registry import Registry
from virtagent_protocol.session import Role

UNIT = "va-line"
#: Seconds until the agent, started now, answers. It takes 3 with TCG.
READY_TIMEOUT = 60.0
#: Seconds for one call.
CALL_TIMEOUT = 60.0


def port_arguments(path: Path) -> list[str]:
    """Return the arguments that give a VM the agent's own port, which ends in a socket at *path*."""
    return [
        *("-chardev", f"socket,id=port,path={path},server=on,wait=off"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=port,name=org.qemu.virtagent"),
    ]


async def start_agent(vm: Vm) -> None:
    """Start the agent in the guest."""
    command = f"systemd-run --quiet --collect --unit {UNIT} va-guest -c isa-serial -p /dev/ttyS1"
    started = await vm.console(command)
    assert started.status == 0, started


async def stop_agent(vm: Vm) -> None:
    """Stop it."""
    stopped = await vm.console(f"systemctl stop {UNIT}")
    assert stopped.status == 0, stopped


class Agent:
    """The agent, as its host sees it."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def call(self, command: str, /, **arguments: Any) -> Any:
        """Call one of the guest agent's commands; dashes in arguments are written as underscores.

        Raises:
            RemoteFault: it failed.
        """
        method = "guest." + command.removeprefix("guest-").replace("-", "_")
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        with trio.fail_after(CALL_TIMEOUT):
            return await self._link.call(method, named)

    async def order(self, command: str, /, **arguments: Any) -> None:
        """Call a command after which the guest may be gone before it has answered."""
        with suppress(LinkBroken, SessionReset):
            await self.call(command, **arguments)

    async def error_of(self, command: str, /, **arguments: Any) -> str:
        """Call a command that must fail, and return what it says."""
        with pytest.raises(RemoteFault) as caught:
            await self.call(command, **arguments)
        return caught.value.message


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Agent]:
    """Connect to a channel's socket and greet the agent: a new session each time."""
    link = Link(Role.HOST, "test 1", Registry())
    async with await trio.open_unix_socket(os.fspath(path)) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(_run, link, stream)
        with trio.fail_after(READY_TIMEOUT):
            await link.wait_for(lambda status: status.state is LinkState.READY)
        yield Agent(link)
        nursery.cancel_scope.cancel()


async def _run(link: Link, stream: trio.abc.Stream) -> None:
    # A guest that ends breaks it; whoever calls then is told.
    with suppress(LinkBroken):
        await link.run(stream)
