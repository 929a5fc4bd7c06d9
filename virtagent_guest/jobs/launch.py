"""Starting a process: its pipes or terminal, its user, its limits. Blocking; for a thread.

The rules:

1. Each process is the leader of a session, and so of a process group, of its own: signals go to the group.
2. The agent has threads, and what Python does between fork and exec of a process with threads may hang. So
   nothing of ours runs there. What subprocess does in C (session, user, groups, directory) is enough for most
   processes. A controlling terminal and limits are not among it: such a process begins as a Python without
   any modules, `_SETTER`, which sets them and then becomes the program.
3. What keeps a program from being started is told by the call that wanted it, with the path: not by an exit
   status.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import shutil
import stat
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import dataclass

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.limits import KIB

from .account import Account, environment, find_account
from .request import Request, TerminalSize

#: Bytes that a pipe holds: a few times what is moved at a time. The kernel's own default is a quarter.
PIPE_SIZE = 256 * KIB
#: As login shells have it; the agent's own is stricter.
UMASK = 0o022

#: Arguments: the descriptor to tell errors on (closed by a successful exec); whether stdin becomes the
#: controlling terminal; limits, ``resource=value,…``; ids of user, group and further groups, with commas
#: between, or nothing; the program's path; the number of variables, and they; argv. It runs as the agent's
#: user until it has read all that it needs of Python, which need not be for others; so it gets no variables
#: of theirs either.
_SETTER = """
import _signal, fcntl, os, resource, sys, termios
for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
    _signal.signal(number, _signal.SIG_DFL)
said, terminal, limits, ids = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
os.set_inheritable(said, False)
path, count, *rest = [os.fsencode(word) for word in sys.argv[5:]]
env = dict(entry.split(b"=", 1) for entry in rest[: int(count)])
what = "limits"
try:
    for limit in filter(None, limits.split(",")):
        number, value = map(int, limit.split("="))
        resource.setrlimit(number, (value, value))
    what = "terminal"
    if terminal == "yes":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    what = "user"
    if ids:
        uid, gid, *groups = map(int, ids.split(","))
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
    what = "program"
    os.execve(path, rest[int(count) :], env)
except (OSError, ValueError) as error:
    os.write(said, f"{what} {getattr(error, 'errno', None) or 22}".encode())
"""


@dataclass
class Started:
    """A process that runs.

    Attributes:
        popen: it.
        out: what it writes comes here, or None; a terminal's master.
        err: what it writes on stderr, or None if that is part of *out*.
        into: what is written here it reads, or None; a copy of a terminal's master.
        terminal: whether these are those of a terminal.
    """

    popen: subprocess.Popen[bytes]
    out: int
    err: int | None
    into: int | None
    terminal: bool

    def discard(self) -> None:
        """End it at once: nobody wants it any more."""
        with contextlib.suppress(OSError):
            os.killpg(self.popen.pid, 9)
        for fd in (self.out, self.err, self.into):
            if fd is not None:
                os.close(fd)
        # One that hangs in the kernel ends when that lets it.
        threading.Thread(target=self.popen.wait, daemon=True).start()


def start(request: Request) -> Started:
    """Start a process.

    Raises:
        Fault: OPEN_FAILED: the program or the working directory cannot be used; INVALID_PARAMS: there is no
            such user; FAILED: anything else. The message names what it was.
    """
    account = find_account(request.user)
    env = environment(request, account)
    path = _find_program(request.argv[0], env)
    with contextlib.ExitStack() as theirs:
        ours: list[int] = []
        try:
            return _spawn(request, account, env, path, theirs, ours)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise


def set_size(terminal: int, size: TerminalSize) -> None:
    """Tell a terminal its size; its foreground processes get SIGWINCH."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


def _spawn(
    request: Request,
    account: Account,
    env: dict[bytes, bytes],
    path: bytes,
    theirs: contextlib.ExitStack,
    ours: list[int],
) -> Started:
    def pipe(*, into: bool) -> tuple[int, int]:
        """Return our end and theirs."""
        reading, writing = os.pipe()
        our, their = (writing, reading) if into else (reading, writing)
        ours.append(our)
        theirs.callback(os.close, their)
        with contextlib.suppress(OSError):  # the user has many pipes
            fcntl.fcntl(our, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(our, False)
        return our, their

    into: int | None = None
    err: int | None = None
    stdin: int = subprocess.DEVNULL
    if request.terminal is not None:
        out, slave = _open_terminal(request.terminal, account)
        ours.append(out)
        theirs.callback(os.close, slave)
        into = os.dup(out)
        ours.append(into)
        os.set_blocking(out, False)
        stdin = stdout = stderr = slave
    else:
        if not request.detached:
            into, stdin = pipe(into=True)
        out, stdout = pipe(into=False)
        if request.merged:
            stderr = stdout
        elif request.stderr is None and not request.detached:
            stderr = subprocess.DEVNULL
        else:
            err, stderr = pipe(into=False)
    popen = _popen(request, account, env, path, (stdin, stdout, stderr))
    _unprotect(popen.pid)
    return Started(popen, out, err, into, request.terminal is not None)


def _popen(
    request: Request, account: Account, env: dict[bytes, bytes], path: bytes, fds: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    set_first = request.terminal is not None or bool(request.limits)
    said, telling = os.pipe()
    try:
        argv = _setter(request, account, env, path, telling) if set_first else list(request.argv)
        switch = account.groups is not None and not set_first
        try:
            popen = subprocess.Popen(
                argv,
                bufsize=0,
                executable=sys.executable if set_first else path,
                stdin=fds[0],
                stdout=fds[1],
                stderr=fds[2],
                cwd=_directory(request, account),
                env={} if set_first else env,
                start_new_session=True,
                umask=UMASK,
                pass_fds=(telling,) if set_first else (),
                user=account.uid if switch else None,
                group=account.gid if switch else None,
                extra_groups=account.groups if switch else None,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise _cannot_start(request, path, error, account) from error
        os.close(telling)
        telling = -1
        if set_first and (words := os.read(said, 100)):
            popen.wait()
            what, _, number = words.decode().partition(" ")
            if what == "program":
                raise _cannot_run(path, OSError(int(number), os.strerror(int(number))))
            why = os.strerror(int(number))
            raise Fault(FaultCode.FAILED, f"the {what} of the process cannot be set: {why}")
        return popen
    finally:
        os.close(said)
        if telling >= 0:
            os.close(telling)


def _setter(
    request: Request, account: Account, env: dict[bytes, bytes], path: bytes, telling: int
) -> list[bytes]:
    """Return the command that sets what subprocess does not, and then becomes the program."""
    limits = ",".join(f"{number}={value}" for number, value in request.limits.items())
    ids = ""
    if account.groups is not None:
        ids = ",".join(str(number) for number in (account.uid, account.gid, *account.groups))
    controlling = "no" if request.terminal is None else "yes"
    words = [sys.executable, "-I", "-S", "-c", _SETTER, str(telling), controlling, limits, ids]
    variables = [name + b"=" + value for name, value in env.items()]
    return [*map(os.fsencode, words), path, str(len(variables)).encode(), *variables, *request.argv]


def _find_program(name: bytes, env: dict[bytes, bytes]) -> bytes:
    if b"/" in name:
        return name
    where = os.fsdecode(env[b"PATH"])
    found = shutil.which(os.fsdecode(name), path=where)
    if found is None:
        raise Fault(
            FaultCode.OPEN_FAILED, f"no such program in the guest: {_shown(name)} (PATH is {where[:200]})"
        )
    return os.fsencode(found)


def _directory(request: Request, account: Account) -> bytes:
    if request.cwd is not None:
        return request.cwd
    return os.fsencode(account.home) if os.path.isdir(account.home) else b"/"


def _cannot_start(request: Request, path: bytes, error: Exception, account: Account) -> Fault:
    # subprocess says by `filename` whether it was the directory.
    cwd = _directory(request, account)
    if isinstance(error, OSError):
        if error.filename == cwd and error.errno == errno.EPERM:
            # Not what chdir(2) says: setuid(2) or its like was forbidden.
            words = "the agent must not start processes of other users: its unit, or a container, forbids it"
            return Fault(FaultCode.FAILED, words)
        if error.filename == cwd and cwd != path:
            return Fault(FaultCode.OPEN_FAILED, f"working directory {_shown(cwd)}: {error.strerror}")
        if error.errno not in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE):
            return _cannot_run(path, error)
        return Fault(FaultCode.FAILED, f"no process can be started: {error.strerror}")
    return Fault(FaultCode.FAILED, f"{_shown(path)} cannot be started: {error}")


def _cannot_run(path: bytes, error: OSError) -> Fault:
    return Fault(FaultCode.OPEN_FAILED, f"{_shown(path)} cannot be run: {error.strerror}")


def _open_terminal(size: TerminalSize, account: Account) -> tuple[int, int]:
    master, slave = pty.openpty()
    try:
        set_size(master, size)
        if account.groups is not None:
            # Or a program could not open its own terminal again by name, as tmux and gpg do.
            group = os.fstat(slave).st_gid
            os.fchown(slave, account.uid, group)
            os.fchmod(slave, stat.S_IRUSR | stat.S_IWUSR | stat.S_IWGRP)
    except OSError as error:
        os.close(master)
        os.close(slave)
        raise Fault(FaultCode.FAILED, f"no terminal can be made: {error.strerror}") from error
    return master, slave


def _unprotect(pid: int) -> None:
    """Make a process as likely as any other to be killed when memory is short; the agent is not."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/oom_score_adj", "r+b", 0) as file:
        if int(file.read(16)) < 0:
            file.write(b"0")


def _shown(path: bytes) -> str:
    return path.decode(errors="backslashreplace")[:400]
