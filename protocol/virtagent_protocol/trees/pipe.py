"""Receiving one file into something that is open already, such as stdout: no temporary name, no going on."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .digests import new_digest
from .entries import Entry
from .landing import Landing, Mismatch
from .place import Place
from .unpack import Unpacker

_ZEROS = bytes(256 * 1024)


class ReaderGone(Exception):
    """Nobody reads the pipe any more."""


class Pipe(Landing):
    """As `Landing`, for a descriptor, which is not closed."""

    def __init__(self, fd: int, entry: Entry, digest: str) -> None:
        self.path, self.name, self.position = b"", b"", 0
        self._fd = fd
        self._digest = new_digest(digest)
        if entry.start:
            raise OSError(0, "a pipe has no part to go on with")

    def write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self.position += len(data)
        self._put(data)

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError:
            raise ReaderGone from None

    def seek(self, offset: int) -> None:
        """A hole is zeros here."""
        if offset < self.position:
            raise OSError(0, "the other end sent an offset that lies behind")
        while self.position < offset:
            zeros = memoryview(_ZEROS)[: offset - self.position]
            self._put(zeros)
            self.position += len(zeros)

    def complete(self, size: int, digest: str) -> None:
        self.seek(max(size, self.position))
        mine = self._digest.hexdigest()
        if mine != digest:
            raise Mismatch(0, f"what arrived is not what was sent: its digest is {mine}, not {digest}")

    def flush(self) -> None:
        pass

    def settle(self, mask: int, *, preserve: bool) -> None:
        pass

    def abandon(self, *, keep: bool = True) -> None:
        pass


class PipeUnpacker(Unpacker):
    """As `Unpacker`, into a descriptor.

    It raises ReaderGone from `feed` when nobody reads that any more.
    """

    def __init__(self, fd: int, digests: Sequence[str] | None = None) -> None:
        super().__init__(Place(os.dup(fd), b"-", b"-"), digests=digests)

    def _land(self, directory: int, name: bytes, path: bytes, entry: Entry) -> Landing:
        return Pipe(directory, entry, self.digest_name)

    def _make_directory(self, parent: int, name: bytes) -> int:
        raise OSError(0, "this is a directory, which cannot be written into a pipe")
