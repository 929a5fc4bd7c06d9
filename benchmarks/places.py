"""Where agents run, and what a case may ask of such a place."""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .clients import BridgeClient, QgaClient
from .wire import WireClient

ROOT = Path(__file__).resolve().parents[1]
#: Ticks a second of /proc/PID/stat.
_TICKS = os.sysconf("SC_CLK_TCK")
_BIN = Path(sys.executable).parent

VA_HOST = str(_BIN / "va-host")
VA_GUEST = str(_BIN / "va-guest")
#: The VM's name for va-host.
NAME = "bench"


class PlaceError(Exception):
    """The place cannot be used; the text says why."""


class Place(ABC):
    """Both agents at work.

    Attributes:
        name: ``native`` or ``guest``.
        scratch: a directory of the host, in memory if there is such a place.
        files: a directory where the agents are, in memory.
        bridge: a client of va-host.
        qga: a client of qemu-ga.
        wire: a client of a second va-guest.
    """

    name: str
    scratch: Path
    files: str
    bridge: BridgeClient
    qga: QgaClient
    wire: WireClient

    def va_host(self, *arguments: str) -> list[str]:
        """Return the command line of a va-host command."""
        return [VA_HOST, "--runtime-dir", str(self.scratch / "run"), *arguments]

    @property
    def qga_path(self) -> Path:
        """The socket of qemu-ga's channel. It has one client at a time."""
        return self.scratch / "qga.sock"

    @property
    def bridge_path(self) -> Path:
        """The socket of va-host's bridge."""
        return self.scratch / "run" / f"{NAME}.qmp"

    @contextmanager
    def without_qga(self) -> Iterator[None]:
        """Leave qemu-ga's channel to somebody else within the block."""
        self.qga.close()
        yield
        self.qga = QgaClient(self.qga_path)

    @abstractmethod
    def shell(self, command: str) -> str:
        """Run a shell command where the agents are, as root, and return its output."""

    @abstractmethod
    def cpu(self) -> dict[str, float]:
        """Return how many seconds of CPU each process has used: va-host, va-guest, qemu-ga, qemu."""

    @abstractmethod
    def start_ours(self) -> float:
        """Start va-guest anew; return how many seconds passed until it answered the first call."""

    @abstractmethod
    def start_theirs(self) -> float:
        """Start qemu-ga anew; return the same."""

    @abstractmethod
    def pids(self) -> tuple[int, int]:
        """Return the process ids of va-guest and qemu-ga, where they run."""

    #: Whether there is a bare port to compare with: `raw_read` and `raw_write`.
    has_raw_port = False

    def raw_read(self, path: str, size: int) -> None:
        """Move a file of *size* bytes to the host through a bare port, by dd."""
        raise NotImplementedError

    def raw_write(self, size: int) -> None:
        """Move *size* bytes from the host to dd through a bare port."""
        raise NotImplementedError

    def make_file(self, name: str, size: int) -> str:
        """Make a file of *size* bytes that do not compress where the agents are; return its path."""
        path = f"{self.files}/{name}"
        self.shell(f"head -c {size} /dev/urandom >{path}")
        return path

    def memory(self) -> tuple[float, float]:
        """Return the resident memory of va-guest and qemu-ga, in MiB."""
        ours, theirs = (self.shell(f"grep VmRSS /proc/{pid}/status").split()[1] for pid in self.pids())
        return int(ours) / 1024, int(theirs) / 1024


def cpu_seconds(stat: str) -> float:
    """Return user and system time, in seconds, of the line that /proc/PID/stat holds."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_of(pid: int) -> float:
    """Return the CPU time of a process of this machine, in seconds."""
    return cpu_seconds(Path(f"/proc/{pid}/stat").read_text())


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
