"""What a record says of a file, a directory or a symbolic link; and names.

Names of Linux are bytes. In JSON one that is UTF-8 is a string, any other ``{"base64": …}``.
"""

from __future__ import annotations

import base64
import binascii
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import RemoteProtocolError
from .records import Kind, Record, encode

FILE, DIRECTORY, SYMLINK = "file", "directory", "symlink"

#: What is neither, in words.
SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
TYPES = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK}

#: NAME_MAX and PATH_MAX of Linux.
NAME_MAX, PATH_MAX = 255, 4096

JsonName = str | dict[str, str]


def to_json(name: bytes) -> JsonName:
    """Return a name, or a path, as JSON can carry it."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(name).decode("ascii")}


def from_json(value: object) -> bytes:
    """Return the bytes of what `to_json` made.

    Raises:
        RemoteProtocolError: it is something else.
    """
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and isinstance(value.get("base64"), str):
            return base64.b64decode(value["base64"], validate=True)
    except (UnicodeEncodeError, binascii.Error):
        pass
    raise RemoteProtocolError(f"this is not a name: {value!r:.80}")


def check_component(name: bytes) -> bytes:
    """Return *name* if it is that of an entry in a directory, and of nothing else.

    Raises:
        RemoteProtocolError: it would lead somewhere else.
    """
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > NAME_MAX:
        raise RemoteProtocolError(f"the other end sent a name that is none: {os.fsdecode(name[:300])!r}")
    return name


@dataclass(frozen=True)
class Entry:
    """One entry of a tree.

    Attributes:
        type: FILE, DIRECTORY or SYMLINK.
        name: in its directory; empty: the root, whose name is the receiver's affair.
        mode: permission bits (07777).
        mtime_ns: None: now.
        uid, gid, user, group: the owner, by number and (if there is one) by name; -1: not told.
        size: of a file when it was opened; None: not known.
        target: of a symbolic link.
        start: the offset from which on a file is sent; the receiver has what comes before.
    """

    type: str
    name: bytes = b""
    mode: int = 0o644
    mtime_ns: int | None = None
    uid: int = -1
    gid: int = -1
    user: str = ""
    group: str = ""
    size: int | None = None
    target: bytes = b""
    start: int = 0

    @classmethod
    def of(cls, status: os.stat_result, name: bytes = b"", *, target: bytes = b"", start: int = 0) -> Entry:
        """Describe what has this status, which must be one of the three types."""
        return cls(
            TYPES[stat.S_IFMT(status.st_mode)],
            name,
            stat.S_IMODE(status.st_mode),
            status.st_mtime_ns,
            status.st_uid,
            status.st_gid,
            user_name(status.st_uid),
            group_name(status.st_gid),
            status.st_size if stat.S_ISREG(status.st_mode) else None,
            target,
            start,
        )

    def encode(self) -> bytes:
        """Return the ENTRY record."""
        fields: dict[str, object] = {"type": self.type, "mode": self.mode}
        if self.name:
            fields["name"] = to_json(self.name)
        if self.mtime_ns is not None:
            fields["mtime_ns"] = self.mtime_ns
        if self.uid >= 0:
            fields |= {"uid": self.uid, "gid": self.gid, "user": self.user, "group": self.group}
        if self.size is not None:
            fields["size"] = self.size
        if self.type == SYMLINK:
            fields["target"] = to_json(self.target)
        if self.start:
            fields["start"] = self.start
        return encode(Kind.ENTRY, **fields)

    @classmethod
    def decode(cls, record: Record) -> Entry:
        """Read an ENTRY record.

        Raises:
            RemoteProtocolError: it is malformed, or its name is none.
        """
        fields = record.fields
        entry = cls(
            type=record.get("type", str),
            name=check_component(from_json(fields["name"])) if "name" in fields else b"",
            mode=record.get("mode", int),
            mtime_ns=record.get("mtime_ns", int) if "mtime_ns" in fields else None,
            uid=record.get("uid", int, -1),
            gid=record.get("gid", int, -1),
            user=record.get("user", str, ""),
            group=record.get("group", str, ""),
            size=record.get("size", int) if "size" in fields else None,
            target=from_json(fields.get("target")) if "target" in fields else b"",
            start=record.get("start", int, 0),
        )
        if entry.type not in (FILE, DIRECTORY, SYMLINK):
            raise RemoteProtocolError(f"there is no type {entry.type!r:.80} of entries")
        if not 0 <= entry.mode <= 0o7777 or entry.start < 0 or (entry.size or 0) < 0:
            raise RemoteProtocolError("mode, start or size of an entry is out of bounds")
        if not all(-1 <= number < 2**32 - 1 for number in (entry.uid, entry.gid)):
            raise RemoteProtocolError("an owner is out of bounds")
        if entry.type == SYMLINK and (not entry.target or b"\0" in entry.target):
            raise RemoteProtocolError("a symbolic link needs a target")
        return entry


@lru_cache(1000)
def user_name(uid: int) -> str:
    """Return the name of a user, or nothing."""
    return _text(lambda: pwd.getpwuid(uid).pw_name)


@lru_cache(1000)
def group_name(gid: int) -> str:
    """Return the name of a group, or nothing."""
    return _text(lambda: grp.getgrgid(gid).gr_name)


def _text(look_up: Any) -> str:
    try:
        name: str = look_up()
        name.encode()
    except (KeyError, OSError, UnicodeEncodeError):
        return ""
    return name


def owner_here(entry: Entry) -> tuple[int, int]:
    """Return the owner's ids on this machine: by name if it is known here, else by number."""
    return _uid(entry.user, entry.uid), _gid(entry.group, entry.gid)


@lru_cache(1000)
def _uid(name: str, number: int) -> int:
    try:
        return pwd.getpwnam(name).pw_uid if name else number
    except (KeyError, OSError, ValueError, UnicodeEncodeError):
        return number


@lru_cache(1000)
def _gid(name: str, number: int) -> int:
    try:
        return grp.getgrnam(name).gr_gid if name else number
    except (KeyError, OSError, ValueError, UnicodeEncodeError):
        return number
