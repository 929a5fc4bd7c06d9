"""va.list, va.stat, va.mkdir, va.remove: what is in the guest's directories, and changes to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import trio

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.trees.entries import SPECIAL, TYPES, group_name, user_name
from virtagent_protocol.values import Struct, Value

from .paths import path_of, shown

registry = Registry()

T = TypeVar("T")

#: Entries in one answer: each is 50 elements of XML, of which a document may have 65,536.
PAGE = 1000


@registry.method("va.stat")
async def stat_(call: Call, path: Value, follow: bool = False) -> Struct:
    """Describe what has this path: name, type, mode, size, mtime_ns, uid, gid, user, group, links, target.

    A symbolic link is described itself unless it is to be followed. mode is the permission bits.
    """
    encoded = path_of(path)
    return await _in_thread("stat", encoded, lambda: _describe(encoded, follow=follow))


@registry.method("va.list")
async def list_(call: Call, path: Value, after: Value = b"") -> Struct:
    """Describe the entries of a directory, sorted by the bytes of their names, those behind *after*.

    entries holds a struct for each, as va.stat gives it; more says whether there are further ones: ask again
    with the last name. For a path that is no directory, directory is false, and the one entry is its.
    """
    encoded = path_of(path)
    behind = after.encode(errors="replace") if isinstance(after, str) else after
    if not isinstance(behind, bytes):
        raise Fault(FaultCode.INVALID_PARAMS, "after must be string or base64")
    return await _in_thread("list", encoded, lambda: _list(encoded, behind))


@registry.method("va.mkdir")
async def mkdir(call: Call, path: Value, parents: bool = False, mode: int = 0o777) -> None:
    """Make a directory, with parents also those above it, and then one that is there is no error.

    mode is cut by the agent's umask.
    """
    encoded = path_of(path)
    if not 0 <= mode <= 0o7777:
        raise Fault(FaultCode.INVALID_PARAMS, f"mode must be 0 to {0o7777} (permission bits): {mode}")
    make = os.makedirs if parents else os.mkdir

    def work() -> None:
        try:
            make(encoded, mode)
        except FileExistsError:
            if not parents or not os.path.isdir(encoded):
                raise

    await _in_thread("mkdir", encoded, work)


@registry.method("va.remove")
async def remove(call: Call, path: Value, recursive: bool = False) -> int:
    """Remove a file, a link or whatever has this name; a directory only if recursive, with all that is in it.

    Symbolic links are removed, not followed. The result is how many entries were removed.
    """
    encoded = path_of(path)
    if os.path.basename(encoded) in (b"", b".", b".."):
        raise Fault(FaultCode.INVALID_PARAMS, f"this is not removed: {shown(encoded)}")
    return await _in_thread("remove", encoded, lambda: _remove(encoded, recursive=recursive))


async def _in_thread(what: str, path: bytes, work: Callable[[], T]) -> T:
    try:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    except OSError as error:
        # The path that failed may be one below.
        at = os.fsencode(error.filename) if isinstance(error.filename, (str, bytes)) else path
        named = at if at.startswith(path) else path
        raise Fault(FaultCode.FAILED, f"{what} failed: {shown(named)}: {error.strerror}") from error


def _describe(path: bytes, *, follow: bool = False, directory: int | None = None) -> Struct:
    status = os.stat(path, dir_fd=directory, follow_symlinks=follow)
    kind = stat.S_IFMT(status.st_mode)
    described: Struct = {
        "name": _text(path if directory is not None else os.path.basename(path) or path),
        # "a FIFO" → "fifo"
        "type": TYPES.get(kind) or SPECIAL.get(kind, "a thing").partition(" ")[2].lower(),
        "mode": stat.S_IMODE(status.st_mode),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "user": user_name(status.st_uid),
        "group": group_name(status.st_gid),
        "links": status.st_nlink,
    }
    if stat.S_ISLNK(status.st_mode):
        with suppress(OSError):
            described["target"] = _text(os.readlink(path, dir_fd=directory))
    return described


def _list(path: bytes, after: bytes) -> Struct:
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return {"directory": False, "entries": [_describe(path)], "more": False}
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = sorted(name for item in os.listdir(directory) if (name := os.fsencode(item)) > after)
        entries: list[Value] = []
        for name in names[:PAGE]:
            trio.from_thread.check_cancelled()
            with suppress(FileNotFoundError):  # removed meanwhile
                entries.append(_describe(name, directory=directory))
        return {"directory": True, "entries": entries, "more": len(names) > PAGE}
    finally:
        os.close(directory)


def _remove(path: bytes, *, recursive: bool) -> int:
    status = os.stat(path, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path)
        return 1
    if not recursive:
        raise IsADirectoryError(0, "this is a directory: remove it recursively")
    count = 0
    for _, directories, files, directory in os.fwalk(path, topdown=False):
        for name in [*directories, *files]:
            trio.from_thread.check_cancelled()
            try:
                os.unlink(name, dir_fd=directory)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=directory)
            count += 1
    os.rmdir(path)
    return count + 1


def _text(name: bytes) -> Value:
    """Return a name as a string if XML can carry it, else as base64."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return name
    return text if text.isprintable() else name
