"""What is to be run, as the struct of `va.exec` says it, checked (SPEC.md section 11).

Text of a process (arguments, variables, paths) is bytes to Linux. It comes as a string, which means its
UTF-8, or as base64 for what is not UTF-8 or what XML cannot carry.
"""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass, field
from typing import Any

from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.values import Struct, Value, as_struct, member, type_name

#: Arguments and variables: more than any command line has, and each costs an element of the message.
WORDS_MAX = 16384
#: Rows or columns of a terminal: what its ioctl carries.
SIZE_MAX = 65535
#: Seconds. A week is long enough for a process that somebody is waiting for.
DEADLINE_MAX = 7 * 86400.0
#: Where programs are if no PATH says so.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Member of ``limits`` → the limit that it sets, in the units of setrlimit(2).
LIMITS = {
    "cpu": resource.RLIMIT_CPU,
    "memory": resource.RLIMIT_AS,
    "files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}

_MEMBERS = frozenset(
    {"argv", "shell", "env", "clear_env", "cwd", "user", "pty", "merge", "deadline", "limits"}
    | {"io", "stderr", "status"}
)


@dataclass(frozen=True)
class TerminalSize:
    """Rows and columns."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Request:
    """What is to be run.

    Attributes:
        argv: the program, a path or a name to be searched for in PATH, and its arguments.
        env: variables that are set.
        clear_env: whether others than those are unset.
        cwd: the working directory; None: the user's home, or that of the agent.
        user: as whom; None: as whom the agent runs.
        terminal: the size of its terminal; None: it has none.
        merge: whether stderr goes where stdout goes.
        deadline: seconds after which it is ended; None: none.
        limits: resource (of `resource`) → value.
        io, stderr, status: ids of streams; all None: the job is detached.
    """

    argv: tuple[bytes, ...]
    env: dict[bytes, bytes] = field(default_factory=dict)
    clear_env: bool = False
    cwd: bytes | None = None
    user: str | None = None
    terminal: TerminalSize | None = None
    merge: bool = False
    deadline: float | None = None
    limits: dict[int, int] = field(default_factory=dict)
    io: int | None = None
    stderr: int | None = None
    status: int | None = None

    @property
    def detached(self) -> bool:
        """Whether its output is kept, rather than sent."""
        return self.io is None

    @property
    def merged(self) -> bool:
        """Whether there is one output, not two."""
        return self.merge or self.terminal is not None


def parse_request(struct: Struct) -> Request:
    """Return what a received struct asks for.

    Raises:
        Fault: INVALID_PARAMS, naming the member.
    """
    try:
        return _parse(struct)
    except RemoteProtocolError as error:
        raise _invalid(str(error)) from error


def parse_size(struct: Struct) -> TerminalSize:
    """Return the size in members ``rows`` and ``cols``. Raises as `parse_request`."""
    sizes = []
    for name in ("rows", "cols"):
        size = _optional(struct, name, int)
        if size is None or not 1 <= size <= SIZE_MAX:
            raise _invalid(f"{name} of a terminal must be an int of 1 to {SIZE_MAX}: {size}")
        sizes.append(size)
    return TerminalSize(*sizes)


def _parse(struct: Struct) -> Request:
    for name in struct:
        if name not in _MEMBERS:
            raise _invalid(f"there is no member '{name[:40]}' here")
    env = {}
    for name, value in member(struct, "env", dict, {}).items():
        if not name or "=" in name:
            raise _invalid(f"{name[:40]!r} is no name of an environment variable")
        env[_text(name, "env")] = _text(value, f"env.{name[:40]}")
    terminal, term = _terminal(struct)
    if term is not None:
        env.setdefault(b"TERM", term)
    cwd = struct.get("cwd")
    request = Request(
        argv=_argv(struct),
        env=env,
        clear_env=member(struct, "clear_env", bool, False),
        cwd=None if cwd is None else _text(cwd, "cwd"),
        user=_optional(struct, "user", str),
        terminal=terminal,
        merge=member(struct, "merge", bool, False),
        deadline=_deadline(struct),
        limits=_limits(member(struct, "limits", dict, {})),
        io=_optional(struct, "io", int),
        stderr=_optional(struct, "stderr", int),
        status=_optional(struct, "status", int),
    )
    _check_streams(request)
    if request.cwd is not None and not request.cwd.startswith(b"/"):
        raise _invalid("cwd must be an absolute path")
    if len(request.argv) + len(env) > WORDS_MAX:
        raise _invalid(f"argv and env have more than {WORDS_MAX} members together")
    return request


def _argv(struct: Struct) -> tuple[bytes, ...]:
    words = member(struct, "argv", list)
    argv = tuple(_text(word, f"argv[{i}]") for i, word in enumerate(words))
    if not argv or not argv[0]:
        raise _invalid("argv must begin with a program")
    if member(struct, "shell", bool, False):
        if len(argv) != 1:
            raise _invalid("with shell, argv must be one string")
        return (b"/bin/sh", b"-c", argv[0])
    return argv


def _terminal(struct: Struct) -> tuple[TerminalSize | None, bytes | None]:
    if "pty" not in struct:
        return None, None
    pty = as_struct(struct["pty"], "pty")
    term = pty.get("term")
    return parse_size(pty), None if term is None else _text(term, "pty.term")


def _deadline(struct: Struct) -> float | None:
    value = struct.get("deadline")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _invalid(f"deadline must be a number, not {type_name(value)}")
    if not (math.isfinite(value) and 0 < value <= DEADLINE_MAX):
        raise _invalid(f"deadline must be over 0 and at most {DEADLINE_MAX:g} s: {value:g}")
    return float(value)


def _limits(struct: Struct) -> dict[int, int]:
    limits = {}
    for name in struct:
        if name not in LIMITS:
            raise _invalid(f"there is no limit '{name[:40]}', only {', '.join(LIMITS)}")
        limits[LIMITS[name]] = member(struct, name, int)
        if limits[LIMITS[name]] < 0:
            raise _invalid(f"limits.{name} must not be negative")
    return limits


def _check_streams(request: Request) -> None:
    if request.detached:
        if request.stderr is not None or request.status is not None:
            raise _invalid("stderr and status go with io; a job without any is detached")
        if request.terminal is not None:
            raise _invalid("a detached job has no terminal: leave out pty, or give it io")
    elif request.status is None:
        raise _invalid("io goes with status, by which the end of the process is told")
    elif request.merged and request.stderr is not None:
        raise _invalid("stderr has no stream of its own with pty or merge")


def _text(value: Value, name: str) -> bytes:
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError:
            raise _invalid(f"{name} is not text") from None
    if not isinstance(value, bytes):
        raise _invalid(f"{name} must be string or base64, not {type_name(value)}")
    if b"\0" in value:
        raise _invalid(f"{name} has a NUL in it, which no process can be given")
    return value


def _optional(struct: Struct, name: str, expected: type) -> Any:
    return None if struct.get(name) is None else member(struct, name, expected)


def _invalid(words: str) -> Fault:
    return Fault(FaultCode.INVALID_PARAMS, words)
