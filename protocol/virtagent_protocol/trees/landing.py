"""One file on its way: written under a temporary name beside its place, flushed, then renamed.

The rules:

1. Whatever happens, the real name stands for what it stood for before, or for the whole new file.
2. The temporary name follows from the real one, so that a later transfer finds it: ``.NAME.va-part``.
3. It is only gone on with if it is a plain file of our own with one name, and locked while it is written:
   somebody else's file under that name is removed, another transfer's is an error.
4. A part that is not worth resuming is removed at once.
5. A large file is flushed beside the writing, so that at its end there is not all of it still to do.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress

from .digests import new_digest
from .entries import NAME_MAX, Entry, owner_here
from .place import check_replaceable, status_of

#: How temporary names begin and end.
PART_HEAD, PART_TAIL = b".", b".va-part"
#: Bytes of a part that is kept when a transfer is cut.
KEEP_FROM = 1024 * 1024
#: Bytes after which a file that grows is flushed.
FLUSH_EVERY = 32 * 1024 * 1024
#: Bytes read at a time to compute the digest of a part.
_READ = 256 * 1024


def part_name(name: bytes) -> bytes:
    """Return the temporary name for a name."""
    part = PART_HEAD + name + PART_TAIL
    if len(part) <= NAME_MAX:
        return part
    return PART_HEAD + hashlib.sha256(name).hexdigest()[:32].encode() + PART_TAIL


def part_size(directory: int, name: bytes) -> int:
    """Return the size of the part of a file that may be gone on with; 0: there is none."""
    status = status_of(directory, part_name(name))
    return status.st_size if status is not None and _is_ours(status) else 0


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()


class Mismatch(OSError):
    """What was written is not what was sent."""


class Landing:
    """A file that is being received.

    Args:
        directory: open; must stay so until `settle` or `abandon`.
        entry: what is to be received; its `start` says from where on.
        name: in the directory.
        path: in the tree, for messages.
        digest: name of the digest.

    Attributes:
        position: the offset at which the next data goes.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, directory: int, name: bytes, path: bytes, entry: Entry, digest: str) -> None:
        self.name = name
        self.path = path
        self._directory = directory
        self._entry = entry
        self._part = part_name(name)
        check_replaceable(directory, name)
        status = status_of(directory, name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(0, "a directory is there, which is not replaced by a file")
        self._fd = self._open()
        self._digest = new_digest(digest)
        self.position = entry.start
        self._unflushed = 0
        self._flusher: threading.Thread | None = None
        self._flush_error: OSError | None = None
        try:
            self._take_up(entry.start)
        except BaseException:
            self.abandon()
            raise

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with suppress(FileNotFoundError):
            status = status_of(self._directory, self._part)
            if status is not None and _is_ours(status):
                fd = os.open(self._part, flags, dir_fd=self._directory)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    raise OSError(0, "another transfer is writing this file") from None
                if _is_ours(os.fstat(fd)):
                    return fd
                os.close(fd)
            os.unlink(self._part, dir_fd=self._directory)
        fd = os.open(self._part, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._directory)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def _take_up(self, start: int) -> None:
        if os.fstat(self._fd).st_size < start:
            raise OSError(0, "the part that was to be gone on with is gone: begin anew, without --resume")
        os.ftruncate(self._fd, start)
        for piece in read_prefix(self._fd, start):
            self._digest.update(piece)
        os.lseek(self._fd, start, os.SEEK_SET)

    def write(self, data: bytes | memoryview) -> None:
        """Write what follows."""
        self._digest.update(data)
        self.position += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._unflushed += len(data)
        if self._unflushed >= FLUSH_EVERY and (self._flusher is None or not self._flusher.is_alive()):
            self._unflushed = 0
            # By a copy of the descriptor, for it outlives us if the disk is stuck.
            copy = os.dup(self._fd)
            self._flusher = threading.Thread(target=self._flush, args=(copy,), name="flush", daemon=True)
            self._flusher.start()

    def _flush(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError as error:
            self._flush_error = error
        finally:
            os.close(fd)

    def seek(self, offset: int) -> None:
        """Leave a hole up to an offset, which must be ahead."""
        if offset < self.position:
            raise OSError(0, "the other end sent an offset that lies behind")
        self.position = os.lseek(self._fd, offset, os.SEEK_SET)

    def complete(self, size: int, digest: str) -> None:
        """The file ends here: check it. `flush` and `settle` must follow.

        Raises:
            Mismatch: its digest, or its size, is another. The part is of no use then.
        """
        mine = self._digest.hexdigest()
        if mine != digest or size < self.position:
            self.abandon(keep=False)
            raise Mismatch(0, f"what arrived is not what was sent: its digest is {mine}, not {digest}")
        if size != os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, size)

    def flush(self) -> None:
        """Wait until it is on the disk. May run in a thread of its own."""
        os.fsync(self._fd)
        if self._flusher is not None:
            self._flusher.join()
        # The kernel tells of a failed write once, to whoever flushes first.
        if self._flush_error is not None:
            raise self._flush_error

    def settle(self, mask: int, *, preserve: bool) -> None:
        """Give it its mode, time and name.

        Args:
            mask: the umask.
            preserve: keep the mode as it is, and the owner if we may.
        """
        apply(self._fd, self._entry, mask, preserve=preserve)
        check_replaceable(self._directory, self.name)
        os.rename(self._part, self.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._close()

    def abandon(self, *, keep: bool = True) -> None:
        """Leave it unfinished; may be repeated, and after `settle` does nothing."""
        if self._fd < 0:
            return
        if not keep or os.fstat(self._fd).st_size < KEEP_FROM:
            with suppress(OSError):
                os.unlink(self._part, dir_fd=self._directory)
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        # The flusher's copy would keep it locked.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def read_prefix(fd: int, end: int) -> Iterator[bytes]:
    """Yield the bytes of a file up to *end*, in pieces; holes are zeros."""
    at = 0
    while at < end and (data := os.pread(fd, min(_READ, end - at), at)):
        yield data
        at += len(data)


def apply(fd: int, entry: Entry, mask: int, *, preserve: bool) -> None:
    """Give an open file or directory its owner, mode and time. Only the mode must succeed."""
    if preserve and os.geteuid() == 0 and entry.uid >= 0:
        os.fchown(fd, *owner_here(entry))
    # Without being told to, no bit is set that would lend somebody our rights.
    os.fchmod(fd, entry.mode if preserve else entry.mode & 0o777 & ~mask)
    if entry.mtime_ns is not None:
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
