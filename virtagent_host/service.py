"""The service of one VM: QEMU's monitor, the link and the bridge, wired together.

The rules:

1. One process serves one VM, under a lock on its name.
2. The service lives as long as QEMU does. The link beneath it comes and goes, and is opened again by itself.
3. What QEMU says about the port (VSERPORT_CHANGE and others) is a hint; only hello makes a link ready.
4. `va_detach` ends the service and leaves QEMU, guest and devices as they are. What else ends it is the
   business of those who run it (`attach`, `launch`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import trio

from virtagent_protocol.errors import LinkBroken, NotReady
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.notify import notify
from virtagent_protocol.nursery import plain_nursery

from .bridge import Bridge
from .commands import bind
from .devices import Channel, ensure_channel, find_channel, is_taken
from .qmp import Event, QmpConnection
from .vm import Vm

log = logging.getLogger("virtagent.host")

#: Seconds between attempts to connect to the channel again: the first, and the longest.
RECONNECT_MIN, RECONNECT_MAX = 0.1, 5.0
#: Seconds for QEMU to notice that the va-host before us is gone.
TAKEN_PATIENCE = 2.0
#: Seconds for the answer to `va_detach` to reach its client.
DETACH_GRACE = 0.2

_NO_AGENT = "no agent has opened the port yet"


#: A task of the service that ends it by returning, such as on a signal.
Stopper = Callable[[Vm, QmpConnection | None], Any]


async def serve_qemu(vm: Vm, qmp: QmpConnection, chardev: Path, bridge: Path, stopper: Stopper) -> None:
    """Find or plug in the port and serve the VM until QEMU ends or *stopper* returns.

    Args:
        vm: the VM.
        qmp: its QEMU.
        chardev: where a new chardev is to listen.
        bridge: where the bridge is to listen.
        stopper: run as a task; ends the service by returning.

    Raises:
        VirtagentError: see `ensure_channel`; or QEMU broke off without saying that it ends.
    """
    channel = await ensure_channel(qmp, chardev)
    with trio.move_on_after(TAKEN_PATIENCE):
        while await is_taken(qmp, channel):
            await trio.sleep(RECONNECT_MIN)
    if await is_taken(qmp, channel):
        raise NotReady(
            f"another program is connected to chardev '{channel.chardev}' ({channel.path}): "
            "end that one (is it a va-host with another --name or --runtime-dir?)"
        )
    await Service(vm, qmp, channel.path, channel).run(bridge, stopper)


class Service:
    """The tasks of one VM.

    Args:
        vm: the VM.
        qmp: its QEMU, or None if it is attached without QMP.
        path: the channel's socket.
        channel: the port, if QEMU was asked for it.
    """

    def __init__(self, vm: Vm, qmp: QmpConnection | None, path: Path, channel: Channel | None = None) -> None:
        self._vm = vm
        self._link = vm.link
        self._qmp = qmp
        self._path = path
        self._channel = channel
        self._ending: str | None = None
        vm.facts = {"channel": str(path)}
        if channel is not None:
            vm.facts |= {"chardev": channel.chardev, "port": channel.port}

    async def run(self, bridge_path: Path, stopper: Stopper) -> None:
        """Serve until QEMU ends, `va_detach` is called, or *stopper* returns.

        Raises:
            VirtagentError: the bridge cannot be served, or QEMU broke off without saying that it ends.
        """
        bridge = Bridge(bind(self._vm), self._qmp)
        self._vm.emit = bridge.broadcast
        async with plain_nursery() as nursery:
            await nursery.start(bridge.serve, bridge_path)
            # After the bridge's own subscription: clients see QEMU's STOP, then what we make of it.
            if self._qmp is not None:
                unsubscribe = self._qmp.subscribe(self._on_qemu_event)
                nursery.start_soon(self._watch_qemu, self._qmp, nursery.cancel_scope)
            nursery.start_soon(self._keep_link)
            nursery.start_soon(self._stop, stopper, nursery.cancel_scope)
            log.info("%s: attached, serving %s", self._vm.name, bridge_path)
            notify("READY=1", status=f"{self._vm.name}: serving {bridge_path}")
            await self._vm.detached.wait()
            log.info("%s: detached, QEMU runs on", self._vm.name)
            await trio.sleep(DETACH_GRACE)
            nursery.cancel_scope.cancel()
        if self._qmp is not None:
            unsubscribe()
        notify("STOPPING=1")

    async def _stop(self, stopper: Stopper, service_scope: trio.CancelScope) -> None:
        await stopper(self._vm, self._qmp)
        service_scope.cancel()

    # --- The link --------------------------------------------------------------------------------

    async def _keep_link(self) -> None:
        pause = RECONNECT_MIN
        while True:
            try:
                stream = await trio.open_unix_socket(self._path)
            except OSError as error:
                reason = f"cannot connect to the channel {self._path}: {error.strerror or error}"
                self._link.hint(LinkEvent.PORT_REMOVED, reason)
            else:
                pause = RECONNECT_MIN
                async with aclosing(stream):
                    await self._run_link(stream)
            await trio.sleep(pause)
            pause = min(2 * pause, RECONNECT_MAX)

    async def _run_link(self, stream: trio.SocketStream) -> None:
        if await self._port_is_open():
            self._link.hint(LinkEvent.PORT_OPENED, "connected to the channel, awaiting the agent's hello")
        else:
            self._link.hint(LinkEvent.PORT_CLOSED, _NO_AGENT)
        try:
            await self._link.run(stream)
        except LinkBroken as error:
            log.warning("%s: %s", self._vm.name, error)
        except Exception as error:
            # A bug of ours ends this link, not the service; the next one starts clean.
            log.exception("%s: internal error in the link", self._vm.name)
            self._link.note_error(f"internal error: {type(error).__name__}: {error}")

    async def _port_is_open(self) -> bool:
        """Whether the guest has the port open; True where nobody can tell, as hello will."""
        if self._qmp is None or self._channel is None or not self._channel.port:
            return True
        channel = await find_channel(self._qmp)
        return channel is not None and channel.open

    # --- QEMU ------------------------------------------------------------------------------------

    async def _watch_qemu(self, qmp: QmpConnection, service_scope: trio.CancelScope) -> None:
        state = await qmp.execute("query-status")
        if not state["running"]:
            self._link.pause(f"QEMU is in state '{state['status']}'")
        await qmp.wait_closed()
        if self._ending is None:
            raise LinkBroken(
                f"{self._vm.name}: QEMU closed its monitor without a word: it crashed or was killed"
            )
        log.info("%s: QEMU has ended (%s)", self._vm.name, self._ending)
        service_scope.cancel()

    def _on_qemu_event(self, event: Event) -> None:
        data = event.get("data", {})
        match event["event"]:
            case "VSERPORT_CHANGE" if self._channel is not None and data["id"] == self._channel.port:
                if data["open"]:
                    self._link.hint(LinkEvent.PORT_OPENED, "an agent has opened the port, awaiting its hello")
                else:
                    self._link.hint(
                        LinkEvent.PORT_CLOSED, "the guest has closed the port: no agent runs there"
                    )
            case "DEVICE_DELETED" if self._channel is not None and data.get("device") == self._channel.port:
                self._link.hint(LinkEvent.PORT_REMOVED, "the port was unplugged")
            case "STOP":
                self._link.pause("QEMU has stopped the VM")
            case "SUSPEND":
                self._link.pause("the guest is suspended")
            case "RESUME" | "WAKEUP":
                self._link.resume()
            case "SHUTDOWN":
                self._ending = data["reason"]
