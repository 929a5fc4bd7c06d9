"""`make demo`: boots a Debian guest, attaches to it, calls it, and shuts it down.

Every step is a command that a reader could type; it is shown with its output and its time. The exit
status is 0 only if each of them did what it should.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.guest.qemu import VmError  # noqa: E402
from tests.guest.vm import Vm, running_vm  # noqa: E402

VA_HOST = str(Path(sys.executable).with_name("va-host"))
#: Seconds for the agent to answer once the port is there: under TCG its start takes some 5 s.
READY_TIMEOUT = 60
#: Seconds for a guest with systemd to power down under TCG.
POWERDOWN_TIMEOUT = 90
#: Lines shown of a long output.
LINES = 8


class DemoFailed(Exception):
    """A step did not do what it should."""


class Demo:
    """The steps, each shown with its time."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._bold = "\x1b[1m" if sys.stdout.isatty() else ""
        self._plain = "\x1b[0m" if sys.stdout.isatty() else ""

    def title(self, text: str) -> None:
        """Announce a step."""
        print(f"\n{self._bold}== {text}{self._plain}", flush=True)

    def took(self, seconds: float) -> None:
        """Close a step with its time."""
        print(f"   ({seconds:.2f} s)", flush=True)

    def command(self, *arguments: str) -> list[str]:
        """Return and show a va-host command line."""
        print(f"$ va-host {shlex.join(arguments)}", flush=True)
        return [VA_HOST, "--runtime-dir", str(self._runtime), *arguments]

    async def run(self, title: str, *arguments: str, expect: Callable[[str], bool] = bool) -> None:
        """Run one va-host command, show what it printed, and check it.

        Raises:
            DemoFailed: its exit status is not 0, or its output is not what the step is for.
        """
        self.title(title)
        command = self.command(*arguments)
        start = time.monotonic()
        result = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        elapsed = time.monotonic() - start
        output = result.stdout.decode(errors="replace")
        lines = output.splitlines()
        for line in lines[:LINES]:
            print(f"   {line}")
        if len(lines) > LINES:
            print(f"   … {len(lines) - LINES} lines more")
        self.took(elapsed)
        if result.returncode != 0:
            raise DemoFailed(
                f"{arguments[0]} ended with status {result.returncode}: {result.stderr.decode()}"
            )
        if not expect(output):
            raise DemoFailed(f"{arguments[0]} printed something else than it should: {output!r}")


async def demo(directory: Path) -> None:
    """Run all steps; see the module."""
    demo = Demo(directory / "run")
    demo.title("Boot a Debian guest, with no virtagent device")
    start = time.monotonic()
    async with running_vm(directory) as vm:
        print(f"   the guest's log: {vm.console_log}")
        await vm.booted()
        demo.took(time.monotonic() - start)

        demo.title("Attach: plug in chardev and port, serve the bridge (goes on in the background)")
        command = demo.command("attach", "--qmp", str(vm.qmp_path), "--name", "demo")
        attach = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL)
        try:
            await _use(demo, vm)
            with trio.fail_after(POWERDOWN_TIMEOUT):
                status = await attach.wait()
            if status != 0:
                raise DemoFailed(f"attach ended with status {status}")
        finally:
            attach.kill()
            with trio.CancelScope(shield=True):
                await attach.wait()


async def _use(demo: Demo, vm: Vm) -> None:
    await demo.run(
        "The guest's udev starts va-guest.service, whose hello makes the link ready",
        *("wait", "demo", "--until", "ready", "--timeout", str(READY_TIMEOUT)),
    )
    await demo.run("Status", "status", "demo", expect=lambda out: "state: ready" in out)
    await demo.run("Ping", "ping", "demo", expect=lambda out: out.startswith("success"))
    await demo.run("Capabilities", "capabilities", "demo", expect=lambda out: "va.getfile" in out)
    await demo.run(
        "A file of the guest", "viewfile", "demo", "/proc/meminfo", expect=lambda out: "MemTotal" in out
    )
    await demo.run("The guest kernel's log", "viewdmesg", "demo", expect=lambda out: "[" in out)
    await demo.run("Shut the guest down", "shutdown", "demo", "powerdown", expect=lambda out: True)

    demo.title("QEMU ends by itself")
    start = time.monotonic()
    status = await vm.wait_exit(POWERDOWN_TIMEOUT)
    demo.took(time.monotonic() - start)
    if status != 0:
        raise DemoFailed(f"QEMU ended with status {status}")


def main() -> int:
    """Run the demo; 0 only if all of it happened."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="virtagent-demo-") as directory:
        try:
            trio.run(demo, Path(directory))
        except (DemoFailed, VmError, trio.TooSlowError) as error:
            print(f"\ndemo: failed: {error}", file=sys.stderr)
            return 1
    print(f"\ndemo: all of it happened, in {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
