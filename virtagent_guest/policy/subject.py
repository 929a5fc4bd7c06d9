"""What a call is about: the files it opens, the program it starts, the user it acts for.

The rules:

1. A call is judged by what it would reach, not by how it was written. A path is resolved first: ``..``,
   double slashes and symbolic links, as the kernel would. The kernel is then asked whether the path as given
   and as resolved are one file; if not (a link of /proc/PID leads where its text does not say), it cannot be
   judged.
2. What cannot be judged (a relative path, a loop of links, a program to be searched for) is `Unjudgeable`:
   no rule that asks for it allows it, every rule that asks for it denies it.
3. A method that opens files or connections, starts programs or acts for a user has an entry in `SUBJECTS`.
   One that has none meets no rule with such conditions.

Between this look and the moment at which a handler opens the path, somebody in the guest who may change a
directory on the way can put a symbolic link there. Hard links and bind mounts give a file further names that
cannot be seen from it. docs/policy.md says what follows from that.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from virtagent_protocol.address import AddressError, TcpAddress, UnixAddress, parse_address
from virtagent_protocol.values import Value

#: Positional; or by their names in QEMU's schema, as they are or as the one struct that guest.* methods take.
Arguments = Sequence[Value] | Mapping[str, Value]

#: Bytes of a path: PATH_MAX of Linux. The kernel refuses longer ones.
PATH_MAX = 4096
#: Characters of an argument: MAX_ARG_STRLEN of Linux.
ARGUMENT_MAX = 128 * 1024


class Unjudgeable(Exception):
    """It cannot be told what the call would reach; the text says why."""


@dataclass(frozen=True)
class Subject:
    """What one call is about; paths and programs as they were given.

    Attributes:
        reads: the path that it reads, or None.
        writes: the path that it writes, creates or removes, or None.
        whole: whether it does so to everything below the path, too.
        itself: whether it may mean a link at the end of the path itself, not what that leads to.
        argv: the program that it starts, and its arguments, or None.
        variables: names of the environment variables that the program is given.
        user: for whom it acts, or None if it acts for nobody in particular.
        address: what it connects to or listens on, as `parse_address` has it, or None.
    """

    reads: str | None = None
    writes: str | None = None
    whole: bool = False
    itself: bool = False
    argv: tuple[str, ...] | None = None
    variables: tuple[str, ...] = ()
    user: str | None = None
    address: str | None = None


def subject_of(method: str, arguments: Arguments) -> Subject | None:
    """Return what a call is about; None: nothing that rules ask for.

    Raises:
        Unjudgeable: an argument is missing or has the wrong type.
    """
    entry = SUBJECTS.get(method)
    return None if entry is None else entry.describe(_Reader(arguments))


def resolve(path: str) -> str:
    """Return the path without symbolic links, ``.``, ``..`` and double slashes; its end need not exist.

    Raises:
        Unjudgeable: rules 1 and 2.
    """
    if not path.startswith("/"):
        raise Unjudgeable(f"{path!r} is not an absolute path")
    try:
        # UTF-8, whatever the agent's locale: as the handlers do.
        encoded = path.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise Unjudgeable(f"{path!r} is not text") from None
    if len(encoded) > PATH_MAX or b"\0" in encoded:
        raise Unjudgeable(f"no path of Linux: {path[:80]!r}")
    try:
        resolved = os.path.realpath(encoded)
        if _identity(encoded, follow=True) != _identity(resolved, follow=False):
            raise Unjudgeable(f"{path!r} leads elsewhere than its links say")
    except OSError as error:
        raise Unjudgeable(f"{path!r}: {error.strerror}") from None
    return resolved.decode(errors="surrogateescape")


def places(path: str, *, itself: bool) -> list[str]:
    """Return the path resolved; with *itself* also as that of a link at its end.

    Raises:
        Unjudgeable: see `resolve`.
    """
    directory, _, name = path.rpartition("/")
    if not itself or name in ("", ".", ".."):
        return [resolve(path)]
    return [resolve(path), os.path.join(resolve(f"{directory}/"), name)]


def program_names(program: str) -> tuple[str, str]:
    """Return a program's path twice: with its directory resolved, and with a last link resolved, too.

    By the first a program is known to its users (/usr/bin/vi, not what the alternatives make of it).

    Raises:
        Unjudgeable: it is not an absolute path, so which program it is depends on a search.
    """
    directory, _, name = program.rpartition("/")
    if not program.startswith("/") or name in ("", ".", ".."):
        raise Unjudgeable(f"{program!r} is not the absolute path of a program")
    return os.path.join(resolve(f"{directory}/"), name), resolve(program)


def _identity(path: bytes, *, follow: bool) -> tuple[int, int] | None:
    try:
        status = os.stat(path, follow_symlinks=follow)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


class _Reader:
    """Arguments of a call, by position or name, checked for their types."""

    def __init__(self, arguments: Arguments) -> None:
        if isinstance(arguments, Sequence) and len(arguments) == 1 and isinstance(arguments[0], dict):
            # The form of all guest.* methods: one struct of named arguments.
            arguments = arguments[0]
        self._arguments = arguments

    def text(self, position: int, name: str, default: str | None = None) -> str:
        value = self._value(position, name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise Unjudgeable(f"argument '{name}' is not a string")
        return value

    def path(self, position: int, name: str, default: str | None = None) -> str:
        """Return a path; base64 is for those that are not UTF-8."""
        value = self._value(position, name)
        if isinstance(value, bytes):
            return value.decode(errors="surrogateescape")
        return self.text(position, name, default)

    def flag(self, position: int, name: str) -> bool:
        value = self._value(position, name)
        if value is not None and not isinstance(value, bool):
            raise Unjudgeable(f"argument '{name}' is not a boolean")
        return bool(value)

    def names(self, name: str) -> tuple[str, ...]:
        value = self._value(0, name)
        if value is not None and not isinstance(value, dict):
            raise Unjudgeable(f"argument '{name}' is not a struct")
        return tuple(value or ())

    def texts(self, position: int, name: str) -> tuple[str, ...]:
        value = self._value(position, name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise Unjudgeable(f"argument '{name}' is not an array")
        decoded = [
            item.decode(errors="surrogateescape") if isinstance(item, bytes) else item for item in value
        ]
        texts = [item for item in decoded if isinstance(item, str) and len(item) <= ARGUMENT_MAX]
        if len(texts) != len(value):
            raise Unjudgeable(f"argument '{name}' does not hold strings that a program takes")
        return tuple(texts)

    def _value(self, position: int, name: str) -> Value:
        if isinstance(self._arguments, Mapping):
            return self._arguments.get(name)
        return self._arguments[position] if position < len(self._arguments) else None


def _getfile(arguments: _Reader) -> Subject:
    return Subject(reads=arguments.text(0, "path"))


def _file_open(arguments: _Reader) -> Subject:
    # The modes of fopen(3).
    path, mode = arguments.text(0, "path"), arguments.text(1, "mode", "r")
    reads = "r" in mode or "+" in mode
    writes = any(letter in mode for letter in "wa+")
    return Subject(reads=path if reads else None, writes=path if writes else None)


def _exec(arguments: _Reader) -> Subject:
    argv = (arguments.text(0, "path"), *arguments.texts(1, "arg"))
    names = tuple(variable.partition("=")[0] for variable in arguments.texts(2, "env"))
    return Subject(argv=argv, variables=names, user=_own_user())


def _va_exec(arguments: _Reader) -> Subject:
    argv = arguments.texts(0, "argv")
    if not argv:
        raise Unjudgeable("argument 'argv' is empty")
    if arguments.flag(0, "shell"):
        # What the shell makes of it, nobody can tell; a rule for it must name the shell.
        argv = ("/bin/sh", "-c", *argv)
    user = arguments.text(1, "user", _own_user())
    return Subject(argv=argv, variables=arguments.names("env"), user=user)


def _stat(arguments: _Reader) -> Subject:
    return Subject(reads=arguments.path(0, "path"), itself=not arguments.flag(1, "follow"))


def _list(arguments: _Reader) -> Subject:
    return Subject(reads=arguments.path(0, "path"), itself=True)


def _mkdir(arguments: _Reader) -> Subject:
    return Subject(writes=arguments.path(0, "path"))


def _remove(arguments: _Reader) -> Subject:
    whole = arguments.flag(1, "recursive")
    return Subject(writes=arguments.path(0, "path"), whole=whole, itself=True)


def _read_tree(arguments: _Reader) -> Subject:
    whole = arguments.flag(0, "recursive")
    return Subject(reads=arguments.path(0, "path"), whole=whole, itself=True)


def _write_tree(arguments: _Reader) -> Subject:
    path = arguments.path(0, "path")
    into = arguments.path(0, "into", "")
    if "/" in into:
        raise Unjudgeable("argument 'into' is no name in a directory")
    if into and os.path.isdir(path.encode(errors="surrogateescape")):
        path = f"{path}/{into}"
    return Subject(writes=path, whole=True, itself=True)


def _for_user(arguments: _Reader) -> Subject:
    return Subject(user=arguments.text(0, "username"))


def _connect(arguments: _Reader) -> Subject:
    return _address(arguments, listening=False)


def _listen(arguments: _Reader) -> Subject:
    return _address(arguments, listening=True)


def _address(arguments: _Reader, *, listening: bool) -> Subject:
    try:
        address = parse_address(arguments.text(0, "address"), listening=listening)
    except AddressError as error:
        raise Unjudgeable(str(error)) from None
    if isinstance(address, UnixAddress):
        address = UnixAddress(resolve(address.path))
    return Subject(address=str(address).lower() if isinstance(address, TcpAddress) else str(address))


def _own_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


@dataclass(frozen=True)
class Entry:
    """How to find out what the calls of a method are about.

    Attributes:
        describe: returns it for one call.
        kinds: which conditions of rules it can meet: ``path``, ``run``, ``user``, ``address``.
    """

    describe: Callable[[_Reader], Subject]
    kinds: frozenset[str]


#: Method → what a call of it is about. The names and positions are those of QEMU's schema.
SUBJECTS: dict[str, Entry] = {
    "va.getfile": Entry(_getfile, frozenset({"path"})),
    "va.stat": Entry(_stat, frozenset({"path"})),
    "va.list": Entry(_list, frozenset({"path"})),
    "va.mkdir": Entry(_mkdir, frozenset({"path"})),
    "va.remove": Entry(_remove, frozenset({"path"})),
    "va.read_tree": Entry(_read_tree, frozenset({"path"})),
    "va.write_tree": Entry(_write_tree, frozenset({"path"})),
    "guest.file_open": Entry(_file_open, frozenset({"path"})),
    "va.exec": Entry(_va_exec, frozenset({"run", "user"})),
    "va.connect": Entry(_connect, frozenset({"address"})),
    "va.listen": Entry(_listen, frozenset({"address"})),
    "guest.exec": Entry(_exec, frozenset({"run", "user"})),
    "guest.set_user_password": Entry(_for_user, frozenset({"user"})),
    "guest.ssh_get_authorized_keys": Entry(_for_user, frozenset({"user"})),
    "guest.ssh_add_authorized_keys": Entry(_for_user, frozenset({"user"})),
    "guest.ssh_remove_authorized_keys": Entry(_for_user, frozenset({"user"})),
}
