"""Both agents as processes on unix sockets, with no VM: what the programs themselves cost."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .clients import BridgeClient, ClientError, QgaClient
from .places import NAME, ROOT, VA_GUEST, Place, PlaceError, cpu_of, end
from .wire import WireClient

#: Seconds for a process to serve its socket.
_PATIENCE = 30.0
#: Seconds between two looks.
_LOOK = 0.002
#: Where scripts/setup.sh unpacks it; its Debian package would start a service.
_UNPACKED = ROOT / "build" / "qemu-ga" / "usr" / "sbin" / "qemu-ga"


class Native(Place):
    """Two va-guests (one behind a va-host, one for `wire`) and one qemu-ga.

    Args:
        scratch: an empty directory, in memory.
        stack: ends what is started here.
    """

    name = "native"

    def __init__(self, scratch: Path, stack: ExitStack) -> None:
        self.scratch = scratch
        (scratch / "files").mkdir()
        self.files = str(scratch / "files")
        self._stack = stack
        self._config = scratch / "guest.toml"
        self._config.touch()
        self._guest = self._start("va-guest", *self._agent("va.sock"))
        self._start("va-guest-wire", *self._agent("wire.sock"))
        self._host = self._start(
            "va-host", *self.va_host("attach", "--name", NAME, "--channel", f"unix:{scratch / 'va.sock'}")
        )
        self._qga = self._start("qemu-ga", *self._rival("qga.sock"))
        _until_exists(self.bridge_path, self.qga_path, scratch / "wire.sock")
        self.bridge = BridgeClient(self.bridge_path)
        subprocess.run(self.va_host("wait", NAME, "--until", "ready"), check=True, stdout=subprocess.DEVNULL)
        self.qga = QgaClient(self.qga_path)
        self.wire = WireClient(scratch / "wire.sock")

    def shell(self, command: str) -> str:
        return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout

    def pids(self) -> tuple[int, int]:
        return self._guest.pid, self._qga.pid

    def cpu(self) -> dict[str, float]:
        processes = {"va-host": self._host, "va-guest": self._guest, "qemu-ga": self._qga}
        return {name: cpu_of(process.pid) for name, process in processes.items()}

    def start_ours(self) -> float:
        path = self.scratch / "new.sock"
        path.unlink(missing_ok=True)
        begin = time.perf_counter()
        process = subprocess.Popen(self._agent("new.sock"), stderr=subprocess.DEVNULL)
        try:
            _until_answers(path, lambda: WireClient(path).ping())
            return time.perf_counter() - begin
        finally:
            end(process)

    def start_theirs(self) -> float:
        path = self.scratch / "new-qga.sock"
        path.unlink(missing_ok=True)
        begin = time.perf_counter()
        process = subprocess.Popen(self._rival("new-qga.sock"), stderr=subprocess.DEVNULL)
        try:
            _until_answers(path, lambda: QgaClient(path).execute("guest-ping"))
            return time.perf_counter() - begin
        finally:
            end(process)

    def _agent(self, socket: str) -> list[str]:
        return [
            VA_GUEST,
            "--config",
            str(self._config),
            "-c",
            "unix-listen",
            "-p",
            str(self.scratch / socket),
        ]

    def _rival(self, socket: str) -> list[str]:
        state = self.scratch / f"{socket}.state"
        state.mkdir(exist_ok=True)
        path = str(self.scratch / socket)
        return [qemu_ga(), "-m", "unix-listen", "-p", path, "-t", str(state), "-f", str(state / "pid")]

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.scratch / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._stack.callback(end, process)
        return process


def qemu_ga() -> str:
    """Return the path of qemu-ga.

    Raises:
        PlaceError: there is none.
    """
    found = shutil.which("qemu-ga") or (str(_UNPACKED) if _UNPACKED.exists() else None)
    if found is None:
        raise PlaceError("there is no qemu-ga to compare with: scripts/setup.sh gets it")
    return found


@contextmanager
def native(scratch: Path) -> Iterator[Native]:
    """Run both agents natively within the block."""
    with ExitStack() as stack:
        yield Native(scratch, stack)


def _until_exists(*paths: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while missing := [path for path in paths if not path.exists()]:
        if time.monotonic() > deadline:
            raise PlaceError(f"nobody serves {missing[0]}")
        time.sleep(_LOOK)


def _until_answers(path: Path, ask: object) -> None:
    assert callable(ask)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            ask()
            return
        except (OSError, ClientError):
            if time.monotonic() > deadline:
                raise PlaceError(f"nobody answers on {path}") from None
            time.sleep(_LOOK)
