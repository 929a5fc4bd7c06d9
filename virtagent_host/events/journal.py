"""A VM's journal of events: what the guest told, on disk, for clients that were away.

The rules:

1. An entry has a position: 1 for the first, then one more each. Positions are the host's own and never go
   back, as the numbers that a guest gives its events may (a reboot, a restored snapshot).
2. Two files of lines of JSON, NAME.events and, older, NAME.events.1. When the first is full it becomes the
   second, and what was that is gone. So what is kept is bounded, and the newest half of it at least is always
   there.
3. Entries are written before anybody hears of them. A va-host that is killed leaves at most a line that is
   cut off; the guest was not told that it arrived, and sends it again.
4. Where each entry begins is held in memory: reading some of them reads no others.
5. Nothing is forced to the disk: what kills the host kills its guests with it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from virtagent_protocol.errors import FailureKind, VirtagentError

log = logging.getLogger("virtagent.host")

#: Bytes of one file: some 20,000 events of the usual size, or 500 of the largest.
FILE_MAX = 4 * 1024 * 1024
#: Bytes that one reading returns at most, as JSON: an answer of the bridge.
READ_MAX = 1024 * 1024

Entry = dict[str, Any]


class JournalError(VirtagentError):
    """The journal cannot be written."""

    kind = FailureKind.NOT_READY


class _File:
    """One of the two files.

    Args:
        path: where it is; None: it has no name, and goes with the process.
        first: the position of its first entry, if it is empty.

    Raises:
        OSError, ValueError: it cannot be opened, or is damaged.
    """

    def __init__(self, path: Path | None, first: int) -> None:
        self.path = path
        self.first = first
        self._starts = array("Q")
        self.size = 0
        if path is None:
            self._fd = os.memfd_create("events", os.MFD_CLOEXEC)
            return
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._recover()
        except BaseException:
            os.close(self._fd)
            raise

    def _recover(self) -> None:
        size = os.fstat(self._fd).st_size
        if size > 2 * FILE_MAX:
            raise ValueError("it is too large")
        data = os.pread(self._fd, size, 0)
        end = data.rfind(b"\n") + 1
        at = 0
        while at < end:
            self._starts.append(at)
            at = data.index(b"\n", at) + 1
        self.size = end
        if end < len(data):
            os.ftruncate(self._fd, end)  # rule 3
        if self._starts:
            self.first = _position(data[: data.index(b"\n")])
            if _position(data[self._starts[-1] : end]) != self.last:
                raise ValueError("its positions are not consecutive")

    @property
    def last(self) -> int:
        """The position of the last entry; one less than `first` if it is empty."""
        return self.first + len(self._starts) - 1

    def append(self, lines: list[bytes]) -> None:
        """Write entries. Raises OSError; none of them is there then."""
        data = b"".join(lines)
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        for line in lines:
            self._starts.append(self.size)
            self.size += len(line)

    def read(self, since: int, count: int, room: int) -> list[bytes]:
        """Return the lines of up to *count* entries behind position *since*, as many as have *room*."""
        begin = max(since + 1 - self.first, 0)
        end = min(begin + count, len(self._starts))
        while end > begin + 1 and self._end(end - 1) - self._starts[begin] > room:
            end = begin + (end - begin) // 2
        if begin >= end or self._end(begin) - self._starts[begin] > room:
            return []
        start = self._starts[begin]
        return os.pread(self._fd, self._end(end - 1) - start, start).splitlines()

    def _end(self, index: int) -> int:
        return self._starts[index + 1] if index + 1 < len(self._starts) else self.size

    def rename(self, path: Path | None) -> None:
        """Give the file another name, in place of whatever has it."""
        if self.path is not None and path is not None:
            self.path.rename(path)
            self.path = path

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Journal:
    """Both files.

    Args:
        path: of the newer one; it is made with the first entry. None: the journal goes with the process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._older_path = None if path is None else path.with_name(path.name + ".1")
        self._older = self._open(self._older_path, 1)
        self._newer = self._open(path, 1 if self._older is None else self._older.last + 1)
        if self._older is not None and self._newer is not None and self._newer.first != self._older.last + 1:
            log.warning("%s does not follow on %s, which is left out", path, self._older_path)
            self._older.close()
            self._older = None

    @staticmethod
    def _open(path: Path | None, first: int) -> _File | None:
        if path is None or not os.path.lexists(path):
            return None
        try:
            return _File(path, first)
        except (OSError, ValueError) as error:
            log.warning("%s: these events are lost: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return None

    @property
    def last(self) -> int:
        """The position of the last entry; 0: there was none."""
        files = self._files()
        return files[-1].last if files else 0

    @property
    def oldest(self) -> int:
        """The position of the oldest entry that is held; one more than `last` if there is none."""
        return next((file.first for file in self._files()), self.last + 1)

    def append(self, entries: Iterable[Mapping[str, Any]]) -> list[Entry]:
        """Write entries, and return them with their positions.

        Raises:
            JournalError: they cannot be written; none of them is there.
        """
        placed: list[Entry] = [{"position": self.last + n, **entry} for n, entry in enumerate(entries, 1)]
        lines = [json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in placed]
        try:
            self._rotate()
            if self._newer is None:
                self._newer = _File(self._path, self.last + 1)
            self._newer.append(lines)
        except (OSError, ValueError) as error:
            raise JournalError(f"the journal {self._path} cannot be written: {error}") from None
        return placed

    def read(self, since: int, count: int) -> list[Entry]:
        """Return up to *count* entries behind position *since*, in order; `READ_MAX` bytes at most."""
        lines: list[bytes] = []
        room = READ_MAX
        for file in self._files():
            if file.last <= since:
                continue
            found = file.read(since, count - len(lines), room)
            lines += found
            room -= sum(map(len, found))
            since = max(since, file.first - 1) + len(found)
            if since < file.last:
                break
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close the files."""
        for file in self._files():
            file.close()
        self._older = self._newer = None

    def _files(self) -> list[_File]:
        return [file for file in (self._older, self._newer) if file is not None]

    def _rotate(self) -> None:
        if self._newer is None or self._newer.size < FILE_MAX:
            return
        self._newer.rename(self._older_path)
        if self._older is not None:
            self._older.close()
        self._older, self._newer = self._newer, None


def _position(line: bytes) -> int:
    entry = json.loads(line)
    position = entry.get("position") if isinstance(entry, dict) else None
    if not isinstance(position, int) or position < 1:
        raise ValueError("an entry has no position")
    return position
