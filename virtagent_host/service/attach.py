"""`va-host attach`: serves a VM that runs already, and leaves it running.

With ``--retry`` it serves one QEMU after another at the same monitor, by one bridge, and waits in between.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from virtagent_protocol.errors import Forbidden, VirtagentError
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.logs import set_up
from virtagent_protocol.notify import notify
from virtagent_protocol.nursery import plain_nursery

from ..bridge.server import Bridge
from ..commands import bind
from ..options import AttachOptions, Ports
from ..qemu.qmp import QmpConnection, open_qmp
from ..qga.commands import GuestCommands
from ..qga.socket import QgaSocket
from ..runtime import VmPaths, lock
from ..services.file import ServicesDir
from ..services.guard import ServicesGuard
from .keeper import SocketKeeper
from .service import Service, open_service, serve_qemu, until_detached
from .vm import Vm

log = logging.getLogger("virtagent.host")

#: Seconds between two attempts to reach a QEMU that is not there.
RETRY_EVERY = 1.0


def attach_main(options: AttachOptions) -> None:
    """Run `va-host attach` until the service ends.

    Raises:
        VirtagentError: it could not begin, or QEMU broke off.
    """
    set_up("va-host", verbose=options.verbose > 0)
    trio.run(attach, options)


async def attach(options: AttachOptions) -> None:
    """Serve a running VM; see `attach_main`."""
    options.runtime.create()
    paths = options.runtime.vm(options.name)
    guard = ServicesGuard(options.name, ServicesDir.find(options.services_dir))
    with lock(paths):
        vm = Vm(
            options.name,
            options.settings,
            two_links=options.ports is Ports.TWO,
            agent=options.agent,
            services=options.services,
            guard=guard,
            set_clock=options.set_clock,
            journal=paths.events,
        )
        async with guard.reloading(), _qga_socket(vm, options.qga):
            await _serve(vm, options, paths)


async def _serve(vm: Vm, options: AttachOptions, paths: VmPaths) -> None:
    if options.qmp is None:
        assert options.channel is not None
        keeper = SocketKeeper(vm.name, vm.link, options.channel)
        await Service(vm, [keeper]).run(paths.bridge, _stop_on_signal)
    elif options.retry:
        await _serve_each_qemu(vm, options.qmp, paths)
    else:
        async with open_qmp(options.qmp) as qmp:
            await serve_qemu(vm, qmp, paths.chardev, paths.bridge, _stop_on_signal)


@asynccontextmanager
async def _qga_socket(vm: Vm, path: Path | None) -> AsyncIterator[None]:
    """Serve clients of QEMU's guest agent at *path* during the block.

    Raises:
        CannotServe, NotThere, Forbidden: see `private_listener`.
    """
    async with plain_nursery() as nursery:
        if path is not None:
            await nursery.start(QgaSocket(GuestCommands(vm)).serve, path)
            log.info("%s: serving clients of QEMU's guest agent on %s", vm.name, path)
        yield
        nursery.cancel_scope.cancel()


async def _serve_each_qemu(vm: Vm, monitor: Path, paths: VmPaths) -> None:
    """Serve whatever QEMU answers at a monitor, until `va_detach` or a signal.

    Raises:
        Forbidden: nothing that waiting mends.
        VirtagentError: the bridge cannot be served.
    """
    bridge = Bridge(bind(vm), None, guest=GuestCommands(vm))
    vm.emit = bridge.broadcast
    async with plain_nursery() as nursery:
        await nursery.start(bridge.serve, paths.bridge)
        nursery.start_soon(_keep_serving, vm, bridge, monitor, paths.chardev)
        nursery.start_soon(_cancel_on_signal, vm, nursery.cancel_scope)
        # It listens for signals when this is over.
        await trio.lowlevel.checkpoint()
        notify("READY=1", status=f"{vm.name}: serving {paths.bridge}")
        await until_detached(vm)
        nursery.cancel_scope.cancel()
    notify("STOPPING=1")


async def _keep_serving(vm: Vm, bridge: Bridge, monitor: Path, chardev: Path) -> None:
    told = ""
    while True:
        try:
            async with open_qmp(monitor) as qmp:
                service = await open_service(vm, qmp, chardev)
                log.info("%s: attached to %s", vm.name, monitor)
                with bridge.in_front_of(qmp):
                    await service.serve()
            reason = "QEMU has ended"
        except Forbidden:
            raise
        except VirtagentError as error:
            reason = str(error)
        vm.hint(LinkEvent.PORT_REMOVED, f"waiting for QEMU: {reason}")
        # Whatever stopped that VM has ended with it.
        vm.resume()
        if reason != told:  # once, not at each attempt
            told = reason
            log.warning("%s: %s; waiting for QEMU at %s", vm.name, reason, monitor)
        await trio.sleep(RETRY_EVERY)


async def _cancel_on_signal(vm: Vm, scope: trio.CancelScope) -> None:
    await _stop_on_signal(vm, None)
    scope.cancel()


async def _stop_on_signal(vm: Vm, qmp: QmpConnection | None) -> None:
    """Return on SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: %s, QEMU runs on", vm.name, signal.Signals(number).name)
            return
