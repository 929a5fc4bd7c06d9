"""Files of a guest as people read them: what `va-host ls` and `stat` print."""

from __future__ import annotations

import stat
import sys
import time
from typing import Any

from virtagent_protocol.text import visible_line

from .output import on_terminal


def put_entries(entries: list[dict[str, Any]], *, long: bool) -> None:
    """Print entries of a directory, as `va_ls` returns them."""
    if not long:
        for entry in entries:
            put_name(name_bytes(entry["name"]))
        return
    widths = {
        column: max((len(str(entry[column])) for entry in entries), default=0) for column in ("links", "size")
    }
    owners = max((len(_owner(entry)) for entry in entries), default=0)
    for entry in entries:
        line = (
            f"{stat.filemode(_TYPE_BITS.get(entry['type'], 0) | entry['mode'])} "
            f"{entry['links']:>{widths['links']}} {_owner(entry):<{owners}} "
            f"{entry['size']:>{widths['size']}} {shown_time(entry['mtime_ns'], '%Y-%m-%d %H:%M')} "
        )
        target = b" -> " + name_bytes(entry["target"]) if "target" in entry else b""
        put_name(line.encode() + name_bytes(entry["name"]) + target)


_TYPE_BITS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
}


def _owner(entry: dict[str, Any]) -> str:
    return f"{entry['user'] or entry['uid']} {entry['group'] or entry['gid']}"


def shown_time(mtime_ns: int, form: str) -> str:
    """Return a time in a form of strftime; "?" if no calendar has it."""
    try:
        return time.strftime(form, time.localtime(mtime_ns // 10**9))
    except (ValueError, OverflowError, OSError):
        return "?"


def name_bytes(name: str | dict[str, str]) -> bytes:
    """Return the bytes of a name in JSON. Raises RemoteProtocolError."""
    from virtagent_protocol.trees.entries import from_json

    return from_json(name)


def shown(path: bytes) -> str:
    """Return a path as one visible line."""
    return visible_line(path.decode(errors="backslashreplace"))


def put_name(line: bytes) -> None:
    """Print a line with a guest's names: as they are into a pipe or file, visibly on a terminal."""
    if on_terminal():
        sys.stdout.write(shown(line) + "\n")
    else:
        sys.stdout.buffer.write(line + b"\n")
