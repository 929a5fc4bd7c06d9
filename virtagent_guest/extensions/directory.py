"""The directory of extensions: which of its files are extensions, and why the others are not.

The rules:

1. What runs as the agent's user comes from nobody else: directory and files belong to root or to that user,
   and nobody else may write to them, nor to a directory above. A symbolic link is no extension.
2. ``NAME.py`` is a Python file (`annotations`). Any other file that is executable is a program (`header`),
   whose method has its name up to the first dot. Hidden files, backups (``~``), directories, and files that
   are neither, are passed over.
3. A file that cannot be used is a `Problem`, and harms no other. Files, sizes and methods are bounded.
4. A file is read again when its inode has changed; what has not is not even opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from virtagent_protocol.signature import EXTENSIONS_MAX, NAME, PREFIX

from .annotations import PYTHON_MAX, parse_function
from .extension import Extension, Kind, Problem, Unusable
from .header import HEADER_MAX, has_header, parse_header

#: Entries of the directory that are looked at.
ENTRIES_MAX = 256
#: Permissions that nobody but the owner may have.
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

#: What of an inode changes when anything in it does.
Print = tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """What is in the directory.

    Attributes:
        extensions: method → extension.
        problems: files that are none, and should be.
    """

    extensions: dict[str, Extension] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


class Directory:
    """A directory of extensions, looked at as often as anybody asks.

    Args:
        path: absolute; empty: there is none. It need not exist.
    """

    def __init__(self, path: str) -> None:
        self._path = path and os.path.realpath(path)
        self._seen: object = None
        self._contents = Contents()
        #: File → its inode then, and what came of it.
        self._known: dict[str, tuple[Print, Extension | Problem | None]] = {}

    def forget(self) -> None:
        """Read every file again at the next look."""
        self._seen = None
        self._known.clear()

    def look(self) -> Contents:
        """Return what is in the directory now: the same object as long as nothing changes."""
        if not self._path:
            return self._contents
        above = list(_above(self._path))
        files, too_many = _files(self._path)
        seen = (above, files, too_many)
        if seen != self._seen:
            self._seen = seen
            self._contents = self._read(above, files, too_many)
        return self._contents

    def _read(self, above: list[tuple[str, Print]], files: dict[str, Print], too_many: bool) -> Contents:
        if distrust := next(filter(None, (_distrust(path, print_) for path, print_ in above)), None):
            return Contents(problems=(distrust,))
        known, self._known = self._known, {}
        extensions: dict[str, Extension] = {}
        problems: list[Problem] = []
        for name, print_ in files.items():
            before = known.get(name)
            found = before[1] if before and before[0] == print_ else _examine(f"{self._path}/{name}", name)
            self._known[name] = (print_, found)
            if isinstance(found, Extension):
                found = _place(found, extensions)
            if isinstance(found, Problem):
                problems.append(found)
        if too_many:
            problems.append(Problem(self._path, f"only {ENTRIES_MAX} of its files are looked at"))
        return Contents(extensions, tuple(problems))


def _place(found: Extension, extensions: dict[str, Extension]) -> Problem | None:
    if found.name in extensions:
        return Problem(found.path, f"{found.name} is {extensions[found.name].path} already: rename one")
    if len(extensions) == EXTENSIONS_MAX:
        return Problem(found.path, f"there are {EXTENSIONS_MAX} extensions already, and no more are offered")
    extensions[found.name] = found
    return None


def _print(status: os.stat_result) -> Print:
    changed = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_ino, status.st_mode, status.st_uid, status.st_size, *changed)


def _above(path: str) -> Iterator[tuple[str, Print]]:
    """Yield the directory and those above, with what of their inodes says whom to trust."""
    while True:
        try:
            status = os.stat(path)
        except OSError:
            return
        yield path, (status.st_mode, status.st_uid)
        if path == "/":
            return
        path = os.path.dirname(path)


def _files(path: str) -> tuple[dict[str, Print], bool]:
    """Return the files in the order of their names, and whether there are more."""
    found: dict[str, Print] = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if (
                    entry.name.startswith(".")
                    or entry.name.endswith("~")
                    or entry.is_dir(follow_symlinks=False)
                ):
                    continue
                if len(found) == ENTRIES_MAX:
                    return dict(sorted(found.items())), True
                try:
                    found[entry.name] = _print(entry.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue  # it went away meanwhile
    except OSError:
        return {}, False
    return dict(sorted(found.items())), False


def _distrust(path: str, print_: Print) -> Problem | None:
    mode, owner = print_
    # In a sticky directory, as /tmp is, nobody can replace what is somebody else's.
    if why := _untrusted(mode & ~(_OTHERS_WRITE if mode & stat.S_ISVTX else 0), owner):
        return Problem(path, f"{why}; until then there are no extensions")
    return None


def _untrusted(mode: int, owner: int) -> str | None:
    if owner not in (0, os.geteuid()):
        return f"it belongs to user id {owner}, and must to root: chown root"
    if mode & _OTHERS_WRITE:
        return f"others may write to it (mode {stat.S_IMODE(mode):04o}): chmod go-w"
    return None


def _examine(path: str, name: str) -> Extension | Problem | None:
    """Return the extension that a file is, why it is none, or None: it is not meant to be one."""
    shown = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    try:
        return _open(path, *name.partition(".")[::2])
    except Unusable as error:
        return Problem(shown, str(error), error.line)
    except OSError as error:
        return Problem(shown, f"it cannot be read: {error.strerror}")


def _open(path: str, stem: str, suffix: str) -> Extension | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if os.path.islink(path):
            raise Unusable("it is a symbolic link: put the file itself here") from None
        raise error
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Unusable("it is no file")
        is_python, is_program = suffix == "py", bool(status.st_mode & 0o111)
        source = file.read((PYTHON_MAX if is_python else HEADER_MAX) + 1)
    text = source[:HEADER_MAX].decode(errors="replace")
    if not is_python and not is_program:
        if has_header(text):
            raise Unusable("it is not executable: chmod +x")
        return None
    if why := _untrusted(status.st_mode, status.st_uid):
        raise Unusable(why)
    if not NAME.fullmatch(stem):
        raise Unusable("its name up to the first dot must be of small letters, digits and _, 32 at most")
    method = PREFIX + stem
    if is_python:
        if len(source) > PYTHON_MAX:
            raise Unusable(f"it has more than {PYTHON_MAX} bytes")
        signature, words = parse_function(method, stem, source)
        return Extension(Kind.PYTHON, path, signature, words)
    header = parse_header(method, text)
    return Extension(Kind.EXECUTABLE, path, header.signature, header.help, header.plain)
