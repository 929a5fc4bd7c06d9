"""Both agents in a real Debian guest, each on a virtserialport of its own.

Two things are set otherwise than in the guest of the tests:

* The journal is not forwarded to the console. va-guest logs each call, and an emulated serial line needs ten
  milliseconds for the line, which no real guest spends.
* There is more memory, so that large files are in it: a disk is not what is measured here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio

from tests.guest.lab import Lab
from tests.guest.qemu import accelerator
from tests.guest.vm import Vm

from .clients import BridgeClient, ClientError, QgaClient
from .places import NAME, Place, PlaceError, cpu_of, cpu_seconds
from .wire import WireClient

#: MiB. Half of it is for files: one of 256 MiB, a copy of it, and the copy that takes its place.
_MEMORY = 2560
_APPEND = "root=/dev/vda rw console=ttyS0 quiet systemd.journald.forward_to_console=0"
#: Port in the guest → socket on the host. virtagent's own port is made by va-host.
_PORTS = {"org.qemu.guest_agent.0": "qga.sock", "bench.wire": "wire.sock", "bench.raw": "raw.sock"}
#: Seconds until something in the guest answers; and between two attempts.
_PATIENCE = 60.0
_LOOK = 0.01

_QGA = "qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0"


class Guest(Place):
    """A booted VM with a va-host, and both agents (and a second va-guest for `wire`) at work in it.

    Args:
        scratch: an empty directory.
        stack: ends what is started here.
    """

    name = "guest"
    has_raw_port = True
    files = "/dev/shm"

    def __init__(self, scratch: Path, stack: ExitStack) -> None:
        self.scratch = scratch
        self._vm = Vm(scratch, memory=_MEMORY, extra=["-append", _APPEND, *_devices(scratch)])
        stack.callback(self._vm.stop)
        self._vm.start()
        trio.run(self._booted)
        lab = Lab(scratch, NAME)
        self._service = lab.start("attach", "--qmp", str(self._vm.qmp_path))
        stack.callback(self._service.stop)
        self._lab = lab
        self.shell(
            f"systemctl stop qemu-guest-agent 2>/dev/null; mkdir -p /run/bench; {_QGA} -d -t /run/bench"
        )
        self.shell(
            "systemd-run --quiet --unit=bench-wire va-guest -c virtio-serial -p /dev/virtio-ports/bench.wire"
        )
        trio.run(self._until_bridge)
        self.bridge = BridgeClient(self.bridge_path)
        trio.run(lab.ready)
        self.qga = QgaClient(self.qga_path)
        self.wire = WireClient(scratch / "wire.sock")

    def shell(self, command: str) -> str:
        done = trio.run(lambda: self._vm.console(command, timeout=600))
        if done.status != 0:
            raise PlaceError(f"{command!r} failed in the guest: {done.output}")
        return done.output

    def pids(self) -> tuple[int, int]:
        ours = int(self.shell("systemctl show -p MainPID --value va-guest"))
        return ours, int(self.shell("pgrep -x qemu-ga"))

    def cpu(self) -> dict[str, float]:
        ours, theirs = self.pids()
        inside = self.shell(f"cat /proc/{ours}/stat /proc/{theirs}/stat").splitlines()
        return {
            "va-host": cpu_of(self._service.pid),
            "qemu": cpu_of(self._vm.pid),
            "va-guest": cpu_seconds(inside[0]),
            "qemu-ga": cpu_seconds(inside[1]),
        }

    def start_ours(self) -> float:
        self.shell("systemctl stop va-guest")
        begin = time.perf_counter()
        self.shell("systemctl start --no-block va-guest")
        self._until_answers(self.bridge, "va_ping")
        return time.perf_counter() - begin

    def start_theirs(self) -> float:
        self.shell("pkill -x qemu-ga; while pgrep -x qemu-ga; do sleep 0.1; done")
        begin = time.perf_counter()
        self.shell(f"{_QGA} -d -t /run/bench")
        # The port keeps what is written until somebody reads it, so one request is enough.
        self.qga.execute("guest-ping")
        return time.perf_counter() - begin

    def raw_read(self, path: str, size: int) -> None:
        with self._raw() as sock:
            self.shell(f"dd if={path} of=/dev/virtio-ports/bench.raw bs=64k >/dev/null 2>&1 &")
            while size > 0:
                size -= len(sock.recv(1 << 18))

    def raw_write(self, size: int) -> None:
        piece = bytes(1 << 18)
        port = "/dev/virtio-ports/bench.raw"
        with self._raw() as sock:
            # Opened once: what comes between two openings would be lost.
            self.shell(
                f"(dd bs=64k iflag=fullblock,count_bytes count={size} of=/dev/null; echo -n . >&0)"
                f" <>{port} >/dev/null 2>&1 &"
            )
            for _ in range(size // len(piece)):
                sock.sendall(piece)
            sock.recv(1)

    @contextmanager
    def _raw(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_PATIENCE * 10)
            sock.connect(str(self.scratch / "raw.sock"))
            yield sock

    def _until_answers(self, client: BridgeClient, command: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                client.execute(command)
                return
            except ClientError as error:
                if time.monotonic() > deadline:
                    raise PlaceError(f"no answer from the guest: {error}") from None
                time.sleep(_LOOK)

    async def _booted(self) -> None:
        # The log says nothing after the journal has started, so the shell is what tells.
        await self._vm.console("systemctl is-system-running --wait || true", timeout=120)

    async def _until_bridge(self) -> None:
        async with self._lab.client():
            pass


def _devices(scratch: Path) -> list[str]:
    # As va-host plugs it in.
    devices = ["-device", f"virtio-serial-pci,ioeventfd={'on' if accelerator() == 'kvm' else 'off'}"]
    for number, (port, path) in enumerate(_PORTS.items(), 1):
        devices += ["-chardev", f"socket,id=bench{number},path={scratch / path},server=on,wait=off"]
        devices += ["-device", f"virtserialport,chardev=bench{number},name={port}"]
    return devices


@contextmanager
def guest(scratch: Path) -> Iterator[Guest]:
    """Run a guest with both agents within the block."""
    with ExitStack() as stack:
        yield Guest(scratch, stack)
