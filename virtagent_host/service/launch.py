"""`va-host launch`: starts QEMU with the virtagent devices, serves it, and ends it gracefully.

The rules:

1. QEMU's command line stays as the user wrote it; ours is appended: a monitor, a chardev, a port.
2. SIGTERM and SIGINT mean a graded shutdown (`shutdown`).
3. A va-host that is killed leaves QEMU running; `va-host attach` then takes over.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path

import trio

from virtagent_protocol.errors import LinkBroken, NotThere, VirtagentError
from virtagent_protocol.logs import set_up

from ..options import LaunchOptions, Ports
from ..qemu.devices import cold_plug_arguments
from ..qemu.qmp import QmpConnection, open_qmp
from ..runtime import lock
from ..services.file import ServicesDir
from ..services.guard import ServicesGuard
from .service import serve_qemu
from .shutdown import shut_down
from .vm import Vm

log = logging.getLogger("virtagent.host")

MONITOR_SUFFIX = ".monitor"
MONITOR_ID = "virtagent-monitor"
#: Seconds for QEMU to greet on its monitor: milliseconds, unless it has much memory to prepare first.
START_PATIENCE = 60.0
#: Seconds between the end of QEMU's monitor and the end of its process.
_REAP_PATIENCE = 5.0


def launch_main(options: LaunchOptions) -> None:
    """Run `va-host launch` until QEMU ends.

    Raises:
        NotThere: no such program.
        LinkBroken: QEMU ended by itself before it could be served, or crashed.
        VirtagentError: see `serve_qemu`.
    """
    set_up("va-host", verbose=options.verbose > 0)
    trio.run(launch, options)


async def launch(options: LaunchOptions) -> None:
    """Start QEMU and serve it until it ends; see `launch_main`."""
    options.runtime.create()
    paths = options.runtime.vm(options.name)
    guard = ServicesGuard(options.name, ServicesDir.find(options.services_dir))
    vm = Vm(
        options.name,
        options.settings,
        two_links=options.ports is Ports.TWO,
        services=options.services,
        guard=guard,
        set_clock=options.set_clock,
        journal=paths.events,
        loaded="-loadvm" in options.argv or "--loadvm" in options.argv,
    )
    served = False

    # From before QEMU starts: a signal that comes meanwhile is acted on when there is something to shut down.
    with lock(paths), trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def shut_down_on_signal(vm: Vm, qmp: QmpConnection | None) -> None:
            nonlocal served
            served = True
            assert qmp is not None
            number = await anext(aiter(signals))
            log.info("%s: %s, shutting the guest down", vm.name, signal.Signals(number).name)
            await shut_down(vm, qmp)

        for spec in vm.ports:
            spec.socket(paths.chardev).unlink(missing_ok=True)
        monitor = paths.bridge.with_suffix(MONITOR_SUFFIX)
        process = await _start([*options.argv, *cold_plug_arguments(vm.ports, paths.chardev)], monitor)
        try:
            async with guard.reloading(), open_qmp(monitor, patience=START_PATIENCE) as qmp:
                await serve_qemu(vm, qmp, paths.chardev, paths.bridge, shut_down_on_signal)
        except VirtagentError:
            if not served:
                # What cannot be served is not to be left running behind the user's back.
                process.terminate()
            with trio.move_on_after(_REAP_PATIENCE):
                await process.wait()
            # -SIGTERM is our own doing; any other end is what went wrong.
            if process.returncode in (None, 0, -signal.SIGTERM):
                raise
        if vm.detached.is_set():
            return
        if await process.wait() != 0:
            raise LinkBroken(f"{options.argv[0]} has ended with status {process.returncode}")


async def _start(argv: list[str], monitor: Path) -> trio.Process:
    """Start QEMU with a monitor that already listens at *monitor*: nobody has to poll for it."""
    monitor.unlink(missing_ok=True)
    # Its own session, so that Ctrl-C reaches us alone and the guest is shut down properly; unless QEMU
    # itself uses the terminal, which it could not do from another session.
    on_terminal = any(word == "-nographic" or "stdio" in word for word in argv)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(monitor))
        monitor.chmod(0o600)
        listener.listen()
        chardev = f"socket,id={MONITOR_ID},fd={listener.fileno()},server=on,wait=off"
        argv = [*argv, "-chardev", chardev, "-mon", f"chardev={MONITOR_ID},mode=control"]
        try:
            return await trio.lowlevel.open_process(
                argv, pass_fds=[listener.fileno()], start_new_session=not on_terminal
            )
        except FileNotFoundError:
            remedy = "install QEMU, for example with: apt install qemu-system-x86"
            raise NotThere(f"no program '{argv[0]}': {remedy}") from None
        except OSError as error:
            raise NotThere(f"'{argv[0]}' cannot be run: {error.strerror}") from None
