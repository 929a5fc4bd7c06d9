"""`va-host attach`: serves a VM that runs already, and leaves it running."""

from __future__ import annotations

import logging
import signal

import trio

from virtagent_protocol.logs import set_up

from .options import AttachOptions
from .qmp import QmpConnection, open_qmp
from .runtime import lock
from .service import Service, serve_qemu
from .vm import Vm

log = logging.getLogger("virtagent.host")


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
    with lock(paths):
        vm = Vm(options.name, options.settings)
        if options.qmp is None:
            assert options.channel is not None
            await Service(vm, None, options.channel).run(paths.bridge, _stop_on_signal)
        else:
            async with open_qmp(options.qmp) as qmp:
                await serve_qemu(vm, qmp, paths.chardev, paths.bridge, _stop_on_signal)


async def _stop_on_signal(vm: Vm, qmp: QmpConnection | None) -> None:
    """Return on SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: %s, QEMU runs on", vm.name, signal.Signals(number).name)
            return
