"""The service of one VM: QEMU's monitor, the link and the bridge, wired together.

The rules:

1. One process serves one VM, under a lock on its name.
2. The service lives as long as QEMU does. The link beneath it comes and goes, and is opened again by itself.
   So is the port: one that is unplugged and plugged in again, by whatever id and chardev, is found.
3. What QEMU says about the port (VSERPORT_CHANGE and others) is a hint; only hello makes a link ready.
4. `va_detach` ends the service and leaves QEMU, guest and devices as they are. What else ends it is the
   business of those who run it (`attach`, `launch`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from virtagent_protocol.errors import LinkBroken, NotReady, NotThere, VirtagentError
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.notify import notify
from virtagent_protocol.nursery import leaves, plain_nursery

from .bridge import Bridge
from .commands import bind
from .devices import PORT_NAME, Channel, ensure_channel, find_channel, is_taken
from .qmp import Event, QmpConnection
from .vm import Vm

log = logging.getLogger("virtagent.host")

#: Seconds between attempts to connect to the channel again: the first, and the longest.
RECONNECT_MIN, RECONNECT_MAX = 0.1, 5.0
#: Seconds for QEMU to notice that the va-host before us is gone.
TAKEN_PATIENCE = 2.0
#: Seconds for the last answers and events (`va_detach`, `quit`, SHUTDOWN) to reach the bridge's clients.
LAST_WORDS = 0.2
#: Seconds between two looks at a QEMU that finishes a migration; no event tells that it has.
MIGRATION_LOOK = 0.1

_NO_AGENT = "no agent has opened the port yet"
_NO_PORT = (
    f"the port was unplugged: plug one in again (device_add virtserialport with name={PORT_NAME}), "
    "or detach and attach, which does"
)
_MIGRATED = "the VM was migrated away: another QEMU runs it now"
_PANICKED = "the guest has panicked"
#: RunState (qapi/run-state.json) → why the VM is stopped, where that is more than somebody's wish.
_WHY_STOPPED = {
    "postmigrate": _MIGRATED,
    "guest-panicked": _PANICKED,
    "io-error": "a disk of the VM has failed (QEMU is in state 'io-error')",
    "watchdog": "the guest's watchdog has stopped the VM",
}


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
        VirtagentError: see `open_service`; or QEMU broke off without saying that it ends.
    """
    await (await open_service(vm, qmp, chardev)).run(bridge, stopper)


async def open_service(vm: Vm, qmp: QmpConnection, chardev: Path) -> Service:
    """Find or plug in the port and return the service for it.

    Raises:
        VirtagentError: see `ensure_channel`; NotReady: another program holds the port.
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
    return Service(vm, qmp, channel.path, channel)


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
        #: Of the present transport.
        self._link_scope = trio.CancelScope()
        vm.facts = {"channel": str(path)}
        if qmp is not None:
            vm.facts["qmp"] = qmp.name
        self._tell_channel()

    async def run(self, bridge_path: Path, stopper: Stopper) -> None:
        """Serve until QEMU ends, `va_detach` is called, or *stopper* returns.

        Raises:
            VirtagentError: the bridge cannot be served, or QEMU broke off without saying that it ends.
        """
        bridge = Bridge(bind(self._vm), self._qmp)
        self._vm.emit = bridge.broadcast
        async with plain_nursery() as nursery:
            await nursery.start(bridge.serve, bridge_path)
            nursery.start_soon(self._serve_to_the_end, nursery.cancel_scope)
            nursery.start_soon(self._stop, stopper, nursery.cancel_scope)
            log.info("%s: attached, serving %s", self._vm.name, bridge_path)
            notify("READY=1", status=f"{self._vm.name}: serving {bridge_path}")
            await until_detached(self._vm)
            nursery.cancel_scope.cancel()
        notify("STOPPING=1")

    async def serve(self) -> None:
        """Keep the link, beneath a bridge that is somebody else's, until QEMU ends.

        Raises:
            LinkBroken: QEMU broke off without saying that it ends.
        """
        async with plain_nursery() as nursery:
            nursery.start_soon(self._keep_link)
            if self._qmp is not None:
                # After the bridge's own subscription: clients see QEMU's STOP, then what we make of it.
                unsubscribe = self._qmp.subscribe(partial(self._on_qemu_event, nursery=nursery))
                try:
                    await self._watch_qemu(self._qmp)
                finally:
                    unsubscribe()
                nursery.cancel_scope.cancel()

    async def _serve_to_the_end(self, service_scope: trio.CancelScope) -> None:
        await self.serve()
        service_scope.cancel()

    async def _stop(self, stopper: Stopper, service_scope: trio.CancelScope) -> None:
        await stopper(self._vm, self._qmp)
        if self._ending is not None:
            await trio.sleep(LAST_WORDS)
        service_scope.cancel()

    # --- The link --------------------------------------------------------------------------------

    async def _keep_link(self) -> None:
        pause = RECONNECT_MIN
        while True:
            try:
                await self._find_channel()
                stream = await trio.open_unix_socket(self._path)
            except VirtagentError as error:
                self._link.hint(LinkEvent.PORT_REMOVED, str(error))
            except OSError as error:
                reason = f"cannot connect to the channel {self._path}: {error.strerror or error}"
                self._link.hint(LinkEvent.PORT_REMOVED, reason)
            else:
                pause = RECONNECT_MIN
                async with aclosing(stream):
                    with trio.CancelScope() as self._link_scope:
                        await self._run_link(stream)
            await trio.sleep(pause)
            pause = min(2 * pause, RECONNECT_MAX)

    async def _find_channel(self) -> None:
        """Look where the port is now.

        Raises:
            NotThere: there is none; the message names the remedy.
            VirtagentError: QEMU does not tell.
        """
        if self._qmp is not None and self._channel is not None:
            channel = await find_channel(self._qmp)
            if channel is None:
                raise NotThere(_NO_PORT)
            self._channel, self._path = channel, channel.path
            self._tell_channel()

    def _tell_channel(self) -> None:
        if self._channel is not None:
            facts = {"channel": str(self._path), "chardev": self._channel.chardev, "port": self._channel.port}
            self._vm.facts |= facts

    async def _run_link(self, stream: trio.SocketStream) -> None:
        # A port without an id sends no events: there hello will tell.
        if self._channel is None or not self._channel.port or self._channel.open:
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
            cause = leaves(error)[0]
            self._link.note_error(f"internal error: {type(cause).__name__}: {cause}")

    # --- QEMU ------------------------------------------------------------------------------------

    async def _watch_qemu(self, qmp: QmpConnection) -> None:
        state = await qmp.execute("query-status")
        if not state["running"]:
            self._link.pause(f"QEMU is in state '{state['status']}'")
        await qmp.wait_closed()
        if self._ending is None:
            raise LinkBroken(
                f"{self._vm.name}: QEMU closed its monitor without a word: it crashed or was killed"
            )
        log.info("%s: QEMU has ended (%s)", self._vm.name, self._ending)
        await trio.sleep(LAST_WORDS)

    def _on_qemu_event(self, event: Event, nursery: trio.Nursery) -> None:
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
                self._link.hint(LinkEvent.PORT_REMOVED, _NO_PORT)
                # The next one may have another chardev.
                self._link_scope.cancel()
            case "STOP":
                self._link.pause("QEMU has stopped the VM")
                nursery.start_soon(self._explain_stop)
            case "GUEST_PANICKED":
                self._link.hint(LinkEvent.PORT_CLOSED, _PANICKED)
            case "SUSPEND":
                self._link.pause("the guest is suspended")
            case "RESUME" | "WAKEUP":
                self._link.resume()
            case "SHUTDOWN":
                self._ending = data["reason"]

    async def _explain_stop(self) -> None:
        """After a stop, find out what it means."""
        assert self._qmp is not None
        status = "finish-migrate"
        with suppress(VirtagentError):
            while status == "finish-migrate":
                await trio.sleep(MIGRATION_LOOK)
                status = (await self._qmp.execute("query-status"))["status"]
        if status == "postmigrate":
            self._link.hint(LinkEvent.PORT_REMOVED, _MIGRATED)
        if status in _WHY_STOPPED:
            self._link.pause(_WHY_STOPPED[status])


async def until_detached(vm: Vm) -> None:
    """Return when `va_detach` was called, and its answer has had time to go out."""
    await vm.detached.wait()
    log.info("%s: detached, QEMU runs on", vm.name)
    await trio.sleep(LAST_WORDS)
