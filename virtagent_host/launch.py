"""`va-host launch`: starts QEMU with the virtagent devices, serves it, and ends it gracefully.

The rules:

1. QEMU's command line stays as the user wrote it; ours is appended: a monitor, a chardev, a port.
2. SIGTERM and SIGINT mean a graded shutdown within one deadline: the agent powers the guest down;
   if there is none, or it takes too long, ACPI does; if that does not help either, QEMU is told to quit.
3. A va-host that is killed leaves QEMU running; `va-host attach` then takes over.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path

import trio

from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import LinkBroken, NotThere, VirtagentError
from virtagent_protocol.logs import set_up

from .commands import CALL_TIMEOUT
from .devices import cold_plug_arguments
from .options import LaunchOptions
from .qmp import QmpConnection, open_qmp
from .runtime import lock
from .service import serve_qemu
from .vm import Vm

log = logging.getLogger("virtagent.host")

MONITOR_SUFFIX = ".monitor"
MONITOR_ID = "virtagent-monitor"
#: Seconds for QEMU to greet on its monitor: milliseconds, unless it has much memory to prepare first.
START_PATIENCE = 60.0
#: Seconds between the end of QEMU's monitor and the end of its process.
_REAP_PATIENCE = 5.0

#: Seconds of a graded shutdown until ACPI is tried, QEMU is told to quit, and all hope is given up.
#: A guest with systemd under TCG powers down in about 10 s.
AGENT_UNTIL, ACPI_UNTIL, QUIT_UNTIL = 45.0, 80.0, 90.0


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
    with lock(paths):
        paths.chardev.unlink(missing_ok=True)
        monitor = paths.bridge.with_suffix(MONITOR_SUFFIX)
        process = await _start([*options.argv, *cold_plug_arguments(paths.chardev)], monitor)
        vm = Vm(options.name, options.settings)
        try:
            async with open_qmp(monitor, patience=START_PATIENCE) as qmp:
                await serve_qemu(vm, qmp, paths.chardev, paths.bridge, shut_down_on_signal)
        except (LinkBroken, NotThere):
            # NotThere: it ended before we could connect, and its listening socket with it.
            with trio.move_on_after(_REAP_PATIENCE):
                await process.wait()
            if process.returncode is None:
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


async def shut_down_on_signal(vm: Vm, qmp: QmpConnection | None) -> None:
    """On SIGTERM or SIGINT, shut the guest down and end QEMU; return when QEMU is gone or will not go."""
    assert qmp is not None
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: %s, shutting the guest down", vm.name, signal.Signals(number).name)
            break
    await shut_down(vm, qmp)


async def shut_down(vm: Vm, qmp: QmpConnection) -> str:
    """Shut a VM down by the gentlest means that works, within QUIT_UNTIL seconds.

    Returns:
        ``"agent"``, ``"acpi"``, ``"quit"``, or ``"nothing"`` if QEMU still runs.
    """
    start = trio.current_time()

    async def ended_by(deadline: float) -> bool:
        with trio.move_on_at(start + deadline):
            await qmp.wait_closed()
            return True
        return False

    means = [
        ("agent", _by_agent, AGENT_UNTIL),
        ("acpi", _by_acpi, ACPI_UNTIL),
        ("quit", _by_quit, QUIT_UNTIL),
    ]
    for name, act, until in means:
        try:
            await act(vm, qmp)
        except VirtagentError as error:
            log.info("%s: shutdown by %s: %s: %s", vm.name, name, error.kind.value, error)
            continue
        if await ended_by(until):
            log.info("%s: shut down by %s in %.1f s", vm.name, name, trio.current_time() - start)
            return name
        log.warning("%s: shutdown by %s did not end QEMU within %g s", vm.name, name, until)
    return "nothing"


async def _by_agent(vm: Vm, qmp: QmpConnection) -> None:
    with call_deadline(CALL_TIMEOUT, "va.shutdown"):
        await vm.call("va.shutdown", "powerdown")


async def _by_acpi(vm: Vm, qmp: QmpConnection) -> None:
    await qmp.execute("system_powerdown")


async def _by_quit(vm: Vm, qmp: QmpConnection) -> None:
    await qmp.execute("quit")
