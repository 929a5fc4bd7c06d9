"""One channel of a VM and the link over it: connected, and connected again, wherever the port is now.

What QEMU says about the port (VSERPORT_CHANGE, DEVICE_DELETED) is a hint; only hello makes a link ready. A
port that is unplugged and plugged in again, by whatever id and chardev, is found.
"""

from __future__ import annotations

import logging
from contextlib import aclosing
from pathlib import Path
from typing import Any

import trio

from virtagent_protocol.errors import LinkBroken, NotReady, NotThere, VirtagentError
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.nursery import leaves

from ..qemu.devices import Channel, PortSpec, ensure_channel, find_channel, is_taken
from ..qemu.qmp import QmpConnection
from .guestlink import GuestLink

log = logging.getLogger("virtagent.host")

#: Seconds between attempts to connect to the channel again: the first, and the longest.
RECONNECT_MIN, RECONNECT_MAX = 0.1, 5.0
#: Seconds for QEMU to notice that the va-host before us is gone.
TAKEN_PATIENCE = 2.0

_NO_AGENT = "no agent has opened the port yet"


async def claim_channel(qmp: QmpConnection, spec: PortSpec, chardev: Path) -> Channel:
    """Find the port or plug it in, and make sure that nobody else is connected to it.

    Args:
        qmp: QEMU.
        spec: the port.
        chardev: where the chardev of a single port is to listen.

    Raises:
        VirtagentError: see `ensure_channel`; NotReady: another program holds the port.
    """
    channel = await ensure_channel(qmp, spec, spec.socket(chardev))
    with trio.move_on_after(TAKEN_PATIENCE):
        while await is_taken(qmp, channel):
            await trio.sleep(RECONNECT_MIN)
    if await is_taken(qmp, channel):
        raise NotReady(
            f"another program is connected to chardev '{channel.chardev}' ({channel.path}): "
            "end that one (is it a va-host with another --name or --runtime-dir?)"
        )
    return channel


class SocketKeeper:
    """A channel at a unix socket of which no more is known than its path.

    Args:
        name: the VM's, for the log.
        link: what runs over it.
        path: the socket.
    """

    def __init__(self, name: str, link: GuestLink, path: Path) -> None:
        self.link = link
        self._name = name
        self._path = path

    def facts(self) -> dict[str, Any]:
        """What `va_status` tells of the channel."""
        return {"channel": str(self._path)}

    def on_qemu_event(self, name: str, data: dict[str, Any]) -> None:
        """Take a hint from QEMU."""

    async def keep(self) -> None:
        """Keep the link up, until cancelled."""
        pause = RECONNECT_MIN
        while True:
            try:
                await self._locate()
                stream = await trio.open_unix_socket(self._path)
            except VirtagentError as error:
                self.link.hint(LinkEvent.PORT_REMOVED, str(error))
            except OSError as error:
                reason = f"cannot connect to the channel {self._path}: {error.strerror or error}"
                self.link.hint(LinkEvent.PORT_REMOVED, reason)
            else:
                pause = RECONNECT_MIN
                async with aclosing(stream):
                    await self._serve(stream)
            await trio.sleep(pause)
            pause = min(2 * pause, RECONNECT_MAX)

    async def _locate(self) -> None:
        """Find out where the channel is now. Raises VirtagentError if it is nowhere."""

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.link.hint(LinkEvent.PORT_OPENED, "connected to the channel, awaiting the agent's hello")
        await self._run_link(stream)

    async def _run_link(self, stream: trio.SocketStream) -> None:
        try:
            await self.link.run(stream)
        except LinkBroken as error:
            log.warning("%s: %s", self._name, error)
        except Exception as error:
            # A bug of ours ends this link, not the service; the next one starts clean.
            log.exception("%s: internal error in the link", self._name)
            cause = leaves(error)[0]
            self.link.note_error(f"internal error: {type(cause).__name__}: {cause}")


class PortKeeper(SocketKeeper):
    """A channel that is a virtserialport of a QEMU we can ask.

    Args:
        name: the VM's, for the log.
        link: what runs over it.
        qmp: QEMU.
        spec: which port.
        channel: where it was found.
    """

    def __init__(
        self, name: str, link: GuestLink, qmp: QmpConnection, spec: PortSpec, channel: Channel
    ) -> None:
        super().__init__(name, link, channel.path)
        self._qmp = qmp
        self._spec = spec
        self._channel = channel
        #: Of the present transport.
        self._scope = trio.CancelScope()

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "chardev": self._channel.chardev, "port": self._channel.port}

    def on_qemu_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "VSERPORT_CHANGE" and data["id"] == self._channel.port:
            if data["open"]:
                self.link.hint(LinkEvent.PORT_OPENED, "an agent has opened the port, awaiting its hello")
            else:
                self.link.hint(LinkEvent.PORT_CLOSED, "the guest has closed the port: no agent runs there")
        elif name == "DEVICE_DELETED" and data.get("device") == self._channel.port:
            self.link.hint(LinkEvent.PORT_REMOVED, self._no_port)
            # The next one may have another chardev.
            self._scope.cancel()

    @property
    def _no_port(self) -> str:
        return (
            "the port was unplugged: plug one in again (device_add virtserialport with "
            f"name={self._spec.name}), or detach and attach, which does"
        )

    async def _locate(self) -> None:
        channel = await find_channel(self._qmp, self._spec)
        if channel is None:
            raise NotThere(self._no_port)
        self._channel, self._path = channel, channel.path

    async def _serve(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as self._scope:
            # A port without an id sends no events: there hello will tell.
            if not self._channel.port or self._channel.open:
                await super()._serve(stream)
            else:
                self.link.hint(LinkEvent.PORT_CLOSED, _NO_AGENT)
                await self._run_link(stream)
