"""Receiving: the bytes of a tree stream → a path.

The rules:

1. The sender is hostile. Names are single components (`entries`), opened in open directories without
   following links (`place`); what does not fit the state it is in ends the stream as a `RemoteProtocolError`.
2. A file stands under its real name only when it is whole, checked and flushed (`landing`). Small files of a
   directory are flushed some at a time, side by side: a disk does many flushes in the time of one.
3. One entry that cannot be written is told in the result, and the rest goes on. A full disk ends it.
4. Directories get their modes and times when they are left, since writing into them needs one and changes
   the other.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ..errors import RemoteProtocolError
from .digests import DIGESTS, preferred
from .entries import DIRECTORY, FILE, Entry, from_json, to_json
from .inventory import inventory
from .landing import Landing, Mismatch, apply, part_name
from .place import DEPTH_MAX, Place, check_replaceable, enter, status_of, umask, words
from .records import Kind, Record, RecordReader, encode

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

#: Errors told in a result, the first ones; the number of all is told besides.
ERRORS_MAX = 100
#: Files that wait to be flushed, and bytes from which on a file is flushed by itself.
PENDING_MAX, PENDING_SIZE = 64, 1024 * 1024
#: Flushes at a time.
FLUSHERS = 8

_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass
class Received:
    """What was received so far; another thread may look at it.

    Attributes:
        entries, size: how many; bytes of contents.
        errors: relative path and reason of what could not be written, the first `ERRORS_MAX`.
        failed: how many could not be written.
        kept: how many were there already.
        left_out: how many the sender could not send.
        skipped, notes: path and reason of what the sender could not, or never does, send; the first ones.
        mismatches: files that arrived otherwise than they were sent.
        digest: of the last file.
        single: whether there is but one file.
        total: bytes there are to receive, if that is known.
        fatal: why it could not go on.
        done: whether all that was sent has been received.
    """

    entries: int = 0
    size: int = 0
    errors: list[tuple[bytes, str]] = field(default_factory=list)
    failed: int = 0
    kept: int = 0
    left_out: int = 0
    skipped: list[tuple[bytes, str]] = field(default_factory=list)
    notes: list[tuple[bytes, str]] = field(default_factory=list)
    mismatches: int = 0
    digest: str = ""
    single: bool = True
    total: int | None = None
    fatal: str = ""
    done: bool = False


@dataclass
class _Directory:
    """A directory that is being received: `fd` is -1 if it could not be made, and all in it is left out."""

    fd: int
    entry: Entry
    path: bytes


class Unpacker:
    """Takes the bytes of a tree stream.

    Args:
        place: where the root goes; closed by `close`.
        resume: tell the sender what is there already.
        preserve: keep modes as they are, and owners if we may.
        digests: those that may be used, the preferred one first.
    """

    def __init__(
        self,
        place: Place,
        *,
        resume: bool = False,
        preserve: bool = False,
        digests: Sequence[str] | None = None,
    ) -> None:
        self.received = Received()
        self._place = place
        self._resume = resume
        self._preserve = preserve
        self._digests = list(digests or preferred())
        self.digest_name = ""
        self._umask = umask()
        self._reader = RecordReader()
        self._stack: list[_Directory] = []
        self._root_seen = False
        self._in_file = False
        self._file: Landing | None = None
        self._path = b""
        self._pending: list[Landing] = []
        self._flushers: ThreadPoolExecutor | None = None

    def begin(self) -> Iterator[bytes]:
        """Yield the bytes to send before the sender begins."""
        if self._resume:
            batch = b""
            for record in inventory(self._place):
                batch += record
                if len(batch) > 64 * 1024:
                    yield batch
                    batch = b""
            yield batch
        yield encode(Kind.GO, digests=self._digests)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of the sender's half; may block on the disk. Nothing is taken after `received.fatal`.

        Raises:
            RemoteProtocolError: they are no tree stream.
        """
        for record in self._reader.feed(data):
            if self.received.fatal:
                return
            if self.received.done or bool(self.digest_name) is (record.kind is Kind.START):
                raise RemoteProtocolError(f"a record of kind {record.kind.name} is out of place")
            self._take(record)

    def result(self) -> bytes:
        """Return the last bytes to send."""
        received = self.received
        errors = [[to_json(path), reason] for path, reason in received.errors]
        while (
            len(
                record := encode(
                    Kind.RESULT,
                    entries=received.entries,
                    bytes=received.size,
                    errors=errors,
                    failed=received.failed,
                    mismatches=received.mismatches,
                    fatal=received.fatal,
                )
            )
            > 48 * 1024
        ):
            errors = errors[: len(errors) // 2]
        return record

    def close(self) -> None:
        """Leave off. What is not whole stays under its temporary name, or is removed (`landing`)."""
        self._drop_file()
        for landing in self._pending:
            landing.abandon()
        self._pending.clear()
        if self._flushers is not None:
            self._flushers.shutdown(wait=False)
        while self._stack:
            directory = self._stack.pop()
            if directory.fd >= 0:
                os.close(directory.fd)
        self._place.close()

    # --- Records -------------------------------------------------------------------------------------

    def _take(self, record: Record) -> None:
        kind = record.kind
        if kind is Kind.DATA and self._in_file:
            self._data(record.data)
        elif kind is Kind.OFFSET and self._in_file:
            self._in_landing(lambda landing: self._seek(landing, record.offset))
        elif kind is Kind.CLOSE and self._in_file:
            self._close_file(record.get("size", int), record.get("digest", str))
        elif kind is Kind.SKIP and (self._in_file or not record.get("within", bool, False)):
            self._skipped(record)
        elif self._in_file:
            raise RemoteProtocolError(f"a record of kind {kind.name} is out of place")
        elif kind is Kind.START:
            self.digest_name = record.get("digest", str)
            if self.digest_name not in self._digests or self.digest_name not in DIGESTS:
                raise RemoteProtocolError(
                    f"the sender chose a digest that was not offered: {self.digest_name!r:.80}"
                )
        elif kind is Kind.ENTRY:
            self._begin(Entry.decode(record))
        elif kind is Kind.LEAVE and self._stack:
            self._leave()
        elif kind is Kind.END and not self._stack:
            self.received.kept = record.get("kept", int, 0)
            self.received.done = True
        else:
            raise RemoteProtocolError(f"a record of kind {kind.name} is out of place")

    def _begin(self, entry: Entry) -> None:
        if bool(self._stack) is not bool(entry.name) or (self._root_seen and not self._stack):
            raise RemoteProtocolError("there must be one root, without a name, and only it has none")
        if len(self._stack) > DEPTH_MAX:
            raise RemoteProtocolError(f"there are more than {DEPTH_MAX} directories within one another")
        self._root_seen = True
        if self._stack:
            top = self._stack[-1]
            parent, name = top.fd, entry.name
            path = top.path + b"/" + name if top.path else name
        else:
            parent, name, path = self._place.directory, self._place.name, b""
        self._path = path
        self.received.total = entry.size if not self._stack and entry.type == FILE else None
        if entry.type == DIRECTORY:
            self.received.single = False
            fd = -1 if parent < 0 else self._attempt(path, lambda: self._make_directory(parent, name))
            self._stack.append(_Directory(-1 if fd is None else fd, entry, path))
        elif entry.type == FILE:
            self._in_file = True
            if parent >= 0:
                self.received.size += entry.start
                self._file = self._attempt(path, lambda: self._land(parent, name, path, entry))
        elif parent >= 0 and self._attempt(path, lambda: _make_link(parent, name, entry)):
            self.received.entries += 1

    def _land(self, directory: int, name: bytes, path: bytes, entry: Entry) -> Landing:
        return Landing(directory, name, path, entry, self.digest_name)

    def _make_directory(self, parent: int, name: bytes) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        return enter(parent, name)

    def _leave(self) -> None:
        directory = self._stack.pop()
        self._settle()
        if directory.fd < 0:
            return
        try:
            done = self._attempt(directory.path, lambda: self._finish(directory))
        finally:
            os.close(directory.fd)
        self.received.entries += bool(done)

    def _finish(self, directory: _Directory) -> bool:
        apply(directory.fd, directory.entry, self._umask, preserve=self._preserve)
        os.fsync(directory.fd)
        return True

    def _data(self, data: bytes | memoryview) -> None:
        self.received.size += len(data)
        self._in_landing(lambda landing: landing.write(data))

    def _seek(self, landing: Landing, offset: int) -> None:
        self.received.size += max(0, offset - landing.position)
        landing.seek(offset)

    def _in_landing(self, work: Callable[[Landing], None]) -> None:
        if self._file is not None:
            landing = self._file

            def attempt() -> bool:
                work(landing)
                return True

            if not self._attempt(self._path, attempt):
                self._drop_file(keep_state=True)

    def _close_file(self, size: int, digest: str) -> None:
        landing, self._file, self._in_file = self._file, None, False
        if landing is None:
            return

        def complete() -> bool:
            landing.complete(size, digest)
            return True

        if not self._attempt(self._path, complete):
            landing.abandon(keep=False)
            return
        self.received.digest = digest
        self._pending.append(landing)
        if not self._stack or len(self._pending) >= PENDING_MAX or size >= PENDING_SIZE:
            self._settle()
        if not self._stack:
            with suppress(OSError):
                os.fsync(self._place.directory)

    def _settle(self) -> None:
        """Flush the files that wait, then give them their names."""
        pending, self._pending = self._pending, []
        if len(pending) > 1:
            if self._flushers is None:
                from concurrent.futures import ThreadPoolExecutor

                self._flushers = ThreadPoolExecutor(FLUSHERS, "flush")
            flushed: list[Callable[[], object]] = [self._flushers.submit(one.flush).result for one in pending]
        else:
            flushed = [one.flush for one in pending]
        for landing, wait in zip(pending, flushed, strict=True):

            def finish(landing: Landing = landing, wait: Callable[[], object] = wait) -> bool:
                wait()
                landing.settle(self._umask, preserve=self._preserve)
                return True

            if self._attempt(landing.path, finish):
                self.received.entries += 1
            else:
                landing.abandon()

    def _skipped(self, record: Record) -> None:
        if record.get("within", bool, False):
            self._drop_file()
        told = (from_json(record.fields.get("path")), record.get("reason", str)[:1000])
        is_note = record.get("note", bool, False)
        self.received.left_out += not is_note
        told_of = self.received.notes if is_note else self.received.skipped
        if len(told_of) < ERRORS_MAX:
            told_of.append(told)

    def _drop_file(self, *, keep_state: bool = False) -> None:
        if self._file is not None:
            self._file.abandon()
            self._file = None
        if not keep_state:
            self._in_file = False

    def _attempt(self, path: bytes, work: Callable[[], T]) -> T | None:
        """Do something about one entry; what fails is told in the result."""
        try:
            return work()
        except OSError as error:
            self.received.failed += 1
            self.received.mismatches += isinstance(error, Mismatch)
            if len(self.received.errors) < ERRORS_MAX:
                self.received.errors.append((path, words(error)))
            if error.errno in _FATAL:
                self.received.fatal = f"{os.fsdecode(self._place.path)}: {words(error)}"
            return None


def _make_link(parent: int, name: bytes, entry: Entry) -> bool:
    """Make a symbolic link in place of whatever file or link is there."""
    check_replaceable(parent, name)
    if (status := status_of(parent, name)) is not None and stat.S_ISDIR(status.st_mode):
        raise OSError(0, "a directory is there, which is not replaced by a link")
    part = part_name(name)
    with suppress(FileNotFoundError):
        os.unlink(part, dir_fd=parent)
    os.symlink(entry.target, part, dir_fd=parent)
    if entry.mtime_ns is not None:
        os.utime(part, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
    os.rename(part, name, src_dir_fd=parent, dst_dir_fd=parent)
    return True
