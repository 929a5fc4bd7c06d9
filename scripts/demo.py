"""`make demo`: boots a Debian guest, attaches to it, calls it, and shuts it down.

Every step is a command that a reader could type; it is shown with its output and its time. The exit
status is 0 only if each of them did what it should.
"""

from __future__ import annotations

import os
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
#: Bytes copied in and out.
COPY_SIZE = 16 << 20
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

    async def run(
        self, title: str, *arguments: str, expect: Callable[[str], bool] = bool, clock: bool = False
    ) -> None:
        """Run one va-host command, show what it prints as it comes, and check it.

        Args:
            title: what the step is for.
            arguments: of va-host.
            expect: whether this output is what the step is for.
            clock: show when each line came.

        Raises:
            DemoFailed: its exit status is not 0, or its output is not what the step is for.
        """
        self.title(title)
        command = self.command(*arguments)
        start = time.monotonic()
        output = b""
        shown = 0
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        async for data in process.stdout:
            output += data
            for line in output.decode(errors="replace").splitlines()[shown:LINES]:
                at = f"{time.monotonic() - start:5.2f} s  " if clock else ""
                print(f"   {at}{line}", flush=True)
                shown += 1
        status = await process.wait()
        text = output.decode(errors="replace")
        if (rest := len(text.splitlines()) - shown) > 0:
            print(f"   … {rest} lines more")
        self.took(time.monotonic() - start)
        if status != 0:
            raise DemoFailed(f"{arguments[0]} ended with status {status}: {text}")
        if not expect(text):
            raise DemoFailed(f"{arguments[0]} printed something else than it should: {text!r}")


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
            await _use(demo, vm, directory)
            with trio.fail_after(POWERDOWN_TIMEOUT):
                status = await attach.wait()
            if status != 0:
                raise DemoFailed(f"attach ended with status {status}")
        finally:
            attach.kill()
            with trio.CancelScope(shield=True):
                await attach.wait()


async def _use(demo: Demo, vm: Vm, directory: Path) -> None:
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
    count = "for i in 1 2 3; do echo $i from $(hostname); sleep 0.5; done"
    await demo.run(
        "A command in the guest; its output comes as it is written",
        *("exec", "demo", "--", "sh", "-c", count),
        expect=lambda out: "3 from" in out,
        clock=True,
    )
    await _copy(demo, directory)
    await demo.run("The guest kernel's log", "viewdmesg", "demo", expect=lambda out: "[" in out)
    await demo.run("Shut the guest down", "shutdown", "demo", "powerdown", expect=lambda out: True)

    demo.title("QEMU ends by itself")
    start = time.monotonic()
    status = await vm.wait_exit(POWERDOWN_TIMEOUT)
    demo.took(time.monotonic() - start)
    if status != 0:
        raise DemoFailed(f"QEMU ended with status {status}")


async def _copy(demo: Demo, directory: Path) -> None:
    there, back = directory / "there", directory / "back"
    there.write_bytes(os.urandom(COPY_SIZE))
    await demo.run(
        f"A file of {COPY_SIZE >> 20} MiB into the guest, over the same port",
        *("cp", "--json", str(there), "demo:/var/tmp/demo"),
    )
    await demo.run("And back again", "cp", "--json", "demo:/var/tmp/demo", str(back))
    if back.read_bytes() != there.read_bytes():
        raise DemoFailed("the file that came back is not the one that was sent")
    print("   it is the same, byte by byte")


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
