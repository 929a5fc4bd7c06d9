"""The service of one VM: QEMU's monitor, the links and the bridge, wired together.

The rules:

1. One process serves one VM, under a lock on its name.
2. The service lives as long as QEMU does. The links beneath it come and go, and are opened again by
   themselves (`keeper`).
3. `va_detach` ends the service and leaves QEMU, guest and devices as they are. What else ends it is the
   business of those who run it (`attach`, `launch`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from virtagent_protocol.errors import LinkBroken, VirtagentError
from virtagent_protocol.linkstate import LinkEvent, LinkState, Status
from virtagent_protocol.notify import notify
from virtagent_protocol.nursery import plain_nursery

from ..bridge.server import Bridge
from ..commands import bind
from ..extensions.calls import ExtensionCommands
from ..qemu.qmp import Event, QmpConnection
from ..qga.commands import GuestCommands
from .keeper import PortKeeper, SocketKeeper, claim_channel
from .lease import renew_leases
from .restore import Cause, Restorer
from .shutdown import end_vm
from .vm import Vm

log = logging.getLogger("virtagent.host")

#: Seconds for the last answers and events (`va_detach`, `quit`, SHUTDOWN) to reach the bridge's clients.
LAST_WORDS = 0.2
#: Seconds between two looks at a QEMU that finishes a migration, and at one whose VM is stopped: it may be
#: migrated away as it is. No event tells of either.
MIGRATION_LOOK = 0.1
STOPPED_LOOK = 2.0

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
    """Find or plug in the port, or the two of a VM with two links, and return the service for it.

    Raises:
        VirtagentError: see `claim_channel`.
    """
    keepers = [
        PortKeeper(vm.name, link, qmp, spec, await claim_channel(qmp, spec, chardev))
        for link, spec in zip(vm.links, vm.ports, strict=True)
    ]
    return Service(vm, keepers, qmp)


class Service:
    """The tasks of one VM.

    Args:
        vm: the VM.
        keepers: its channels, the host's calls' first.
        qmp: its QEMU, or None if it is attached without QMP.
    """

    def __init__(self, vm: Vm, keepers: Sequence[SocketKeeper], qmp: QmpConnection | None = None) -> None:
        self._vm = vm
        self._keepers = keepers
        self._qmp = qmp
        self._ending: str | None = None
        self._restorer = Restorer(vm, vm.set_clock, loaded=vm.loaded)
        vm.facts = self._facts
        vm.end = None if qmp is None else partial(end_vm, vm, qmp)

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = dict(self._keepers[0].facts())
        if self._qmp is not None:
            facts["qmp"] = self._qmp.name
        return facts

    async def run(self, bridge_path: Path, stopper: Stopper) -> None:
        """Serve until QEMU ends, `va_detach` is called, or *stopper* returns.

        Raises:
            VirtagentError: the bridge cannot be served, or QEMU broke off without saying that it ends.
        """
        guest, extensions = GuestCommands(self._vm), ExtensionCommands(self._vm)
        bridge = Bridge(bind(self._vm), self._qmp, guest=guest, extensions=extensions)
        self._vm.emit = bridge.broadcast
        async with plain_nursery() as nursery:
            await nursery.start(bridge.serve, bridge_path)
            nursery.start_soon(self._serve_to_the_end, nursery.cancel_scope)
            nursery.start_soon(self._stop, stopper, nursery.cancel_scope)
            # From here on a signal finds the stopper listening: nobody is told sooner that we are ready.
            # Twice, since tasks of one turn run in any order: after the first it may not have been its turn.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
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
            for keeper in self._keepers:
                nursery.start_soon(keeper.keep)
            nursery.start_soon(renew_leases, self._vm.name, self._vm.link)
            if self._qmp is not None:
                # After the bridge's own subscription: clients see QEMU's STOP, then what we make of it.
                unsubscribe = self._qmp.subscribe(self._on_qemu_event)
                nursery.start_soon(self._explain_stops, self._qmp)
                nursery.start_soon(self._restorer.run)
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

    # --- QEMU ------------------------------------------------------------------------------------

    async def _watch_qemu(self, qmp: QmpConnection) -> None:
        state = await qmp.execute("query-status")
        if not state["running"]:
            self._restorer.found(state["status"])
            self._vm.pause(f"QEMU is in state '{state['status']}'")
        await qmp.wait_closed()
        if self._ending is None:
            raise LinkBroken(
                f"{self._vm.name}: QEMU closed its monitor without a word: it crashed or was killed"
            )
        log.info("%s: QEMU has ended (%s)", self._vm.name, self._ending)
        await trio.sleep(LAST_WORDS)

    def _on_qemu_event(self, event: Event) -> None:
        data = event.get("data", {})
        for keeper in self._keepers:
            keeper.on_qemu_event(event["event"], data)
        match event["event"]:
            case "STOP":
                self._restorer.stopped(Cause.PAUSE)
                self._vm.pause("QEMU has stopped the VM")
            case "GUEST_PANICKED":
                self._vm.hint(LinkEvent.PORT_CLOSED, _PANICKED)
            case "SUSPEND":
                self._restorer.stopped(Cause.WAKEUP)
                self._vm.pause("the guest is suspended")
            case "RESUME" | "WAKEUP":
                self._vm.resume()
                self._restorer.resumed()
            case "SHUTDOWN":
                self._ending = data["reason"]

    async def _explain_stops(self, qmp: QmpConnection) -> None:
        """Whenever the VM is stopped, find out what it means."""
        link = self._vm.link
        known = None
        with suppress(VirtagentError):
            while True:
                await link.wait_for(_is_paused)
                status = (await qmp.execute("query-status"))["status"]
                if status != known and status in _WHY_STOPPED:
                    if status == "postmigrate":
                        self._vm.hint(LinkEvent.PORT_REMOVED, _MIGRATED)
                    self._vm.pause(_WHY_STOPPED[status])
                known = status
                with trio.move_on_after(MIGRATION_LOOK if status == "finish-migrate" else STOPPED_LOOK):
                    await link.wait_for(lambda status: not _is_paused(status))
                    known = None


def _is_paused(status: Status) -> bool:
    return status.state is LinkState.PAUSED


async def until_detached(vm: Vm) -> None:
    """Return when `va_detach` was called, and its answer has had time to go out."""
    await vm.detached.wait()
    log.info("%s: detached, QEMU runs on", vm.name)
    await trio.sleep(LAST_WORDS)
