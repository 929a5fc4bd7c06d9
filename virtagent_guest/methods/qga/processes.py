"""The processes that guest-exec has started, by their process ids.

The rules:

1. They belong to the agent, not to the link or the client, and nobody ends them: as qemu-ga's.
2. At most `RUNNING_MAX` run at a time; one more is refused. Of those that have ended and were not asked for,
   the last `FINISHED_MAX` are remembered, and fewer if a new process would have no room for its output.
3. Each has a thread, which feeds its input, reads its output and awaits its end. It depends on no link, and a
   process that neither reads nor ends holds up nothing.
4. They do not inherit what only the agent needs: its umask, and its protection from the kernel's search for
   somebody to kill when memory is short.
5. A process has ended when it has and its output is at an end: as with qemu-ga, one that leaves a
   child behind with its output open counts as running until that has closed it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import selectors
import shutil
import subprocess
import threading
from dataclasses import dataclass

from virtagent_protocol.limits import KIB

from .capture import STREAM_MAX, Budget, Captured
from .command import QgaError, reason

#: Processes at a time. Each costs a thread and four descriptors of the agent.
RUNNING_MAX = 64
#: Ended processes whose status nobody has asked for.
FINISHED_MAX = 64

#: As login shells have it.
UMASK = 0o022

#: Runs what the kernel can not.
SHELL = "/bin/sh"

_PIECE = 64 * KIB

#: Word of GuestExecCaptureOutputMode → whether stdout and stderr are captured, and whether as one.
CAPTURES = {
    "none": (False, False, False),
    "stdout": (True, False, False),
    "stderr": (False, True, False),
    "separated": (True, True, False),
    "merged": (True, False, True),
}


@dataclass(frozen=True)
class Program:
    """What is to be run.

    Attributes:
        command: path or name, and the arguments.
        environment: ``NAME=value`` of each variable; None: the agent's own.
        given: for its stdin; None: it has none.
        capture: a key of `CAPTURES`.
    """

    command: list[str]
    environment: list[str] | None
    given: bytes | None
    capture: str


class Process:
    """One process.

    Attributes:
        pid: its id.
        status: None while it runs, then its exit status, or less than 0 for a signal.
        out, err: what it wrote.
    """

    def __init__(self, program: Program, budget: Budget) -> None:
        out, err, merged = CAPTURES[program.capture]
        self._popen = _start(program, out, err, merged)
        self._given = memoryview(program.given or b"")
        self.pid = self._popen.pid
        self.status: int | None = None
        self.out = Captured(budget)
        self.err = Captured(budget)

    def follow(self) -> None:
        """Feed and read the process until it has ended."""
        _unprotect(self.pid)
        with self._popen as popen, selectors.DefaultSelector() as selector:
            if popen.stdin is not None:
                os.set_blocking(popen.stdin.fileno(), False)
                selector.register(popen.stdin, selectors.EVENT_WRITE)
            for pipe, captured in ((popen.stdout, self.out), (popen.stderr, self.err)):
                if pipe is not None:
                    selector.register(pipe, selectors.EVENT_READ, captured)
            while selector.get_map():
                for key, _ in selector.select():
                    more = _read(key.fd, key.data) if key.data is not None else self._feed(key.fd)
                    if not more:
                        selector.unregister(key.fileobj)
                        assert isinstance(key.fileobj, io.RawIOBase)
                        key.fileobj.close()
            status = popen.wait()
        self.status = status

    def _feed(self, fd: int) -> bool:
        """Write some of its input; return whether there is more to be written."""
        try:
            self._given = self._given[os.write(fd, self._given[:_PIECE]) :]
        except BlockingIOError:
            return True
        except OSError:
            return False  # it reads no more
        return bool(self._given)


class Processes:
    """The table."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._budget = Budget()
        self._starting = 0
        #: Those that have ended in the order of their end.
        self._processes: dict[int, Process] = {}

    def start(self, program: Program) -> int:
        """Start a program and return its process id. It blocks until the program was loaded.

        Raises:
            QgaError: too many run, or this one cannot.
        """
        with self._lock:
            running = sum(process.status is None for process in self._processes.values())
            if running + self._starting >= RUNNING_MAX:
                raise QgaError(f"{running} processes run, and {RUNNING_MAX} may: wait for some to end")
            self._starting += 1
            while self._budget.left < STREAM_MAX and (finished := self._finished()):
                self._forget(finished[0])
        try:
            process = Process(program, self._budget)
            with self._lock:
                # Of an ended one with the same id nobody has asked for the status, and now nobody can.
                self._forget(process.pid)
                self._processes[process.pid] = process
        finally:
            with self._lock:
                self._starting -= 1
        threading.Thread(target=self._follow, args=[process], name=f"exec {process.pid}", daemon=True).start()
        return process.pid

    def find(self, pid: int) -> Process:
        """Return the process of that id.

        Raises:
            QgaError: there is none.
        """
        with self._lock:
            try:
                return self._processes[pid]
            except KeyError:
                raise QgaError(f"PID {pid} does not exist") from None

    def reap(self, process: Process) -> tuple[bytes, bytes]:
        """Forget a process that has ended, and return its stdout and stderr."""
        with self._lock:
            if self._processes.get(process.pid) is not process:
                raise QgaError(f"PID {process.pid} does not exist")  # somebody else has asked meanwhile
            del self._processes[process.pid]
            return process.out.take(), process.err.take()

    def _follow(self, process: Process) -> None:
        process.follow()
        with self._lock:
            # Since it was waited for, another one may have got its id.
            if self._processes.get(process.pid) is process:
                self._processes[process.pid] = self._processes.pop(process.pid)
            for pid in self._finished()[:-FINISHED_MAX]:
                self._forget(pid)

    def _finished(self) -> list[int]:
        return [pid for pid, process in self._processes.items() if process.status is not None]

    def _forget(self, pid: int) -> None:
        process = self._processes.pop(pid, None)
        if process is not None:
            process.out.take()
            process.err.take()


def _start(program: Program, out: bool, err: bool, merged: bool) -> subprocess.Popen[bytes]:
    path = program.command[0]
    executable = _executable(path, program.environment)
    try:
        try:
            return _popen(program, executable, program.command, out, err, merged)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
        # A script without "#!" is the shell's, as for execvp(3).
        return _popen(program, SHELL, [SHELL, executable, *program.command[1:]], out, err, merged)
    except OSError as error:
        # The words are those of GLib, which qemu-ga uses for this.
        raise QgaError(f"Failed to execute child process “{path}” ({reason(error)})") from error


def _popen(
    program: Program, executable: str, command: list[str], out: bool, err: bool, merged: bool
) -> subprocess.Popen[bytes]:
    if not executable:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return subprocess.Popen(
        command,
        bufsize=0,
        executable=executable,
        env=None if program.environment is None else _variables(program.environment),
        stdin=subprocess.DEVNULL if program.given is None else subprocess.PIPE,
        stdout=subprocess.PIPE if out else subprocess.DEVNULL,
        stderr=_stderr(err, merged),
        umask=UMASK,
    )


def _unprotect(pid: int) -> None:
    """Make a process as likely as any other to be killed when memory is short."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/oom_score_adj", "r+b", 0) as file:
        if int(file.read(16)) < 0:
            file.write(b"0")


def _stderr(captured: bool, merged: bool) -> int:
    if merged:
        return subprocess.STDOUT
    return subprocess.PIPE if captured else subprocess.DEVNULL


def _executable(path: str, environment: list[str] | None) -> str:
    """Return the program's path: looked for in the PATH it is given, or else in the agent's."""
    if "/" in path:
        return path
    given = _variables(environment or []).get("PATH")
    return shutil.which(path, path=given if given is not None else os.environ.get("PATH")) or path


def _variables(environment: list[str]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for entry in environment:
        name, _, value = entry.partition("=")
        # The first of two, as getenv(3) finds it.
        variables.setdefault(name, value)
    return variables


def _read(fd: int, captured: Captured) -> bool:
    """Read some output; return whether there may be more."""
    piece = b""
    with contextlib.suppress(OSError):
        piece = os.read(fd, _PIECE)
    captured.add(piece)
    return bool(piece)
