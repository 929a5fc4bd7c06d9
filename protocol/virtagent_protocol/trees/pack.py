"""Sending: a path → the bytes of a tree stream.

The rules:

1. What is sent is opened once and then read by that descriptor; entries of a directory by their names in it.
   Symbolic links below the path are sent as links.
2. Nothing is opened that is no file, directory or link: a FIFO would wait, a device would act.
3. One entry that cannot be read is told, and the rest goes on.
4. Small records are gathered, so that ten thousand small files are no ten thousand messages; data of large
   ones is read where it is sent from, without a copy: it stays as it is for as long as it is referred to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..buffers import BufferPool
from .digests import choose, new_digest, preferred
from .entries import DIRECTORY, FILE, SPECIAL, TYPES, Entry, to_json
from .landing import read_prefix
from .listen import Listener
from .place import DEPTH_MAX, OPEN_DIRECTORY, failed, words
from .records import Kind, encode, encode_offset, head

#: Bytes read at a time; with the record's head they fill whole messages of a stream.
PIECE = 1024 * 1024 - 5
#: Buffers for them, which are used again: those that are read into, wait, or are being sent.
BUFFERS = 4
#: Bytes of small records that are gathered.
GATHER = 128 * 1024
#: Errors and notes that are kept, the first ones.
ERRORS_MAX = 100

#: A directory that is being sent: its descriptor, and what is left of it.
_Opened = tuple[int, "os._ScandirIterator[str]"]

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass
class Sent:
    """What was sent so far; another thread may look at it.

    Attributes:
        entries, size: how many; bytes of contents.
        kept: entries that the receiver had already.
        errors: relative path and reason of what could not be sent, the first `ERRORS_MAX`.
        failed: how many could not be.
        notes: as errors, of what is never sent.
        digest: of the last file.
        single: whether there is but one file.
        total: bytes there are to send, if that is known.
    """

    entries: int = 0
    size: int = 0
    kept: int = 0
    errors: list[tuple[bytes, str]] = field(default_factory=list)
    failed: int = 0
    notes: list[tuple[bytes, str]] = field(default_factory=list)
    digest: str = ""
    single: bool = True
    total: int | None = None


class Source:
    """What is to be sent, open; `close` it.

    Args:
        path: links on the way, and the last one, are followed.
        recursive: whether it may be a directory.

    Raises:
        TreeError: it cannot be opened, or is nothing that is sent.
    """

    def __init__(self, path: bytes, *, recursive: bool) -> None:
        self.path = path
        try:
            _refuse_special(os.stat(path))
            # Another file may have taken the name since: do not wait for that one, and look again.
            self.fd = os.open(path, _OPEN)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise failed(path, error if isinstance(error, OSError) else str(error)) from None
        try:
            self.status = os.fstat(self.fd)
            _refuse_special(self.status)
            self.is_directory = stat.S_ISDIR(self.status.st_mode)
            if self.is_directory and not recursive:
                raise OSError(0, "this is a directory: copy it recursively (-r)")
        except OSError as error:
            self.close()
            raise failed(path, error) from None

    @classmethod
    def of_fd(cls, fd: int) -> Source:
        """Return a source that reads what is open already, such as a pipe, up to its end."""
        source = cls.__new__(cls)
        source.path, source.fd, source.is_directory = b"-", fd, False
        source.status = os.fstat(fd)
        return source

    def close(self) -> None:
        """Close it; may be repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _refuse_special(status: os.stat_result) -> None:
    if kind := SPECIAL.get(stat.S_IFMT(status.st_mode)):
        raise OSError(0, f"{kind}, not a file or directory")


class Packer:
    """Makes the bytes of a tree stream.

    Args:
        source: what is sent; the packer does not close it.
        digests: those that may be used, the preferred one first.

    Attributes:
        sent: what was sent so far.
        digest_name: which of them is used.
    """

    def __init__(self, source: Source, digests: Sequence[str] | None = None) -> None:
        self.sent = Sent(single=not source.is_directory)
        self.digest_name = ""
        self._source = source
        self._digests = digests or preferred()
        self._pending = bytearray()
        self._buffers = BufferPool(BUFFERS)
        self._complete: Mapping[bytes, tuple[int, int]] = {}
        self._parts: Mapping[bytes, int] = {}

    def chunks(self, heard: Listener) -> Generator[bytes | memoryview, None, None]:
        """Yield the bytes to send, once the receiver has said GO. Close the generator if you leave it early.

        Raises:
            RemoteProtocolError: no digest in common.
        """
        self.digest_name = choose(heard.digests or [], self._digests)
        self._complete, self._parts = heard.complete, heard.parts
        self._put(encode(Kind.START, digest=self.digest_name))
        source = self._source
        if source.is_directory:
            yield from self._directory(source.fd, Entry.of(source.status))
        elif source.path == b"-":
            yield from self._file(source.fd, b"", Entry(FILE))
        else:
            self.sent.total = source.status.st_size or None
            if self._is_kept(b"", source.status):
                self._skip(b"", "", kept=True)
            else:
                yield from self._file(source.fd, b"", self._entry(source.status, b"", b""))
        sent = self.sent
        self._put(encode(Kind.END, entries=sent.entries, bytes=sent.size, kept=sent.kept, errors=sent.failed))
        yield bytes(self._pending)

    def _put(self, record: bytes) -> None:
        self._pending += record

    def _gathered(self, most: int = GATHER) -> Iterator[bytes]:
        if len(self._pending) >= most:
            yield bytes(self._pending)
            self._pending.clear()

    def _directory(self, fd: int, root: Entry) -> Iterator[bytes | memoryview]:
        """Send a tree; not by recursion, where every byte would pass through 100 generators."""
        self._put(root.encode())
        self.sent.entries += 1
        # Of each directory: its descriptor, what is left of it, its path.
        stack = [(os.dup(fd), os.scandir(fd), b"")]
        try:
            while stack:
                directory, entries, path = stack[-1]
                try:
                    item = next(entries, None)
                except OSError as error:
                    self._skip(path, words(error))
                    item = None
                if item is None:
                    self._put(encode(Kind.LEAVE))
                    stack.pop()
                    entries.close()
                    os.close(directory)
                    continue
                name = os.fsencode(item.name)
                below = path + b"/" + name if path else name
                try:
                    entered = yield from self._item(directory, name, below, len(stack))
                except OSError as error:
                    self._skip(below, words(error))
                else:
                    if entered is not None:
                        stack.append((*entered, below))
                yield from self._gathered()
        finally:
            for directory, entries, _ in stack:
                entries.close()
                os.close(directory)

    def _item(
        self, directory: int, name: bytes, path: bytes, depth: int
    ) -> Generator[bytes | memoryview, None, _Opened | None]:
        """Send one entry of a directory; a generator that returns a directory to enter."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = TYPES.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            self._skip(path, f"{SPECIAL.get(stat.S_IFMT(status.st_mode), 'no file')}: left out", note=True)
            return None
        if kind == DIRECTORY:
            if depth >= DEPTH_MAX:
                raise OSError(0, f"more than {DEPTH_MAX} directories within one another: left out")
            entered = os.open(name, OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                record, entries = Entry.of(os.fstat(entered), name).encode(), os.scandir(entered)
            except BaseException:
                os.close(entered)
                raise
            self._put(record)
            self.sent.entries += 1
            return entered, entries
        if kind != FILE:
            target = os.readlink(name, dir_fd=directory)
            self._put(Entry.of(status, name, target=target).encode())
            self.sent.entries += 1
            return None
        if self._is_kept(path, status):
            self._skip(path, "", kept=True)
            return None
        fd = os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "it was replaced while it was looked at")
            yield from self._file(fd, path, self._entry(status, name, path))
        finally:
            os.close(fd)
        return None

    def _entry(self, status: os.stat_result, name: bytes, path: bytes) -> Entry:
        start = self._parts.get(path, 0)
        return Entry.of(status, name, start=start if start <= status.st_size else 0)

    def _is_kept(self, path: bytes, status: os.stat_result) -> bool:
        return self._complete.get(path) == (status.st_size, status.st_mtime_ns)

    def _skip(
        self, path: bytes, reason: str, *, note: bool = False, kept: bool = False, within: bool = False
    ) -> None:
        if kept:
            self.sent.kept += 1
            return
        self.sent.failed += not note
        told = self.sent.notes if note else self.sent.errors
        if len(told) < ERRORS_MAX:
            told.append((path, reason))
        self._put(encode(Kind.SKIP, path=to_json(path), reason=reason, note=note, within=within))

    def _file(self, fd: int, path: bytes, entry: Entry) -> Iterator[bytes | memoryview]:
        self._put(entry.encode())
        digest = new_digest(self.digest_name)
        size = entry.start
        try:
            for piece in read_prefix(fd, entry.start):
                digest.update(piece)
            self.sent.size += entry.start
            for offset, buffer in _pieces(fd, entry, self._buffers):
                if len(buffer) == 5:
                    size = offset
                    break
                if offset > size:
                    self._put(encode_offset(offset))
                    self.sent.size += offset - size
                digest.update(buffer[5:])
                size = offset + len(buffer) - 5
                self.sent.size += len(buffer) - 5
                buffer[:5] = head(Kind.DATA, len(buffer) - 5)
                if len(buffer) + len(self._pending) < GATHER:
                    self._pending += buffer
                else:
                    yield from self._gathered(1)
                    yield buffer
            self.sent.digest = digest.hexdigest()
            self.sent.entries += 1
            self._put(encode(Kind.CLOSE, size=size, digest=self.sent.digest))
        except OSError as error:
            self._skip(path, words(error), within=True)


def _pieces(fd: int, entry: Entry, buffers: BufferPool) -> Iterator[tuple[int, memoryview]]:
    """Yield offset and data of a file from the entry's start on, each with five bytes of room before it.

    If it ends in a hole, the last offset is its size, without data.
    """
    if entry.size is None:  # a pipe: it has no offsets
        while True:
            data = os.read(fd, PIECE)
            if not data:
                return
            yield entry.start, memoryview(bytearray(5) + data)
            entry = Entry(FILE, start=entry.start + len(data))
    at = entry.start
    if not _is_sparse(fd):
        yield from _read_from(fd, at, None, buffers)
        return
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            # No data up to its end.
            yield max(at, os.fstat(fd).st_size), memoryview(bytearray(5))
            return
        end = os.lseek(fd, at, os.SEEK_HOLE)
        for offset, buffer in _read_from(fd, at, end, buffers):
            yield offset, buffer
            at = offset + len(buffer) - 5
        if at < end:
            return  # it was made shorter, or is one of /sys, whose size tells nothing


def _read_from(fd: int, at: int, end: int | None, buffers: BufferPool) -> Iterator[tuple[int, memoryview]]:
    while end is None or at < end:
        # A small file shall not cost a large buffer; one that grows is read on all the same.
        wanted = PIECE if end is None else min(PIECE, end - at)
        left = os.fstat(fd).st_size - at if end is None else wanted
        size = 5 + (min(wanted, left + 1) if left > 0 else min(wanted, 4096))
        buffer = memoryview(buffers.take(size) if size > PIECE else bytearray(size))
        count = os.preadv(fd, [buffer[5:]], at)
        if not count:
            return
        yield at, buffer[: 5 + count]
        at += count


def _is_sparse(fd: int) -> bool:
    """Whether a file has holes that its file system tells of."""
    status = os.fstat(fd)
    if status.st_blocks * 512 >= status.st_size:
        return False
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return True
