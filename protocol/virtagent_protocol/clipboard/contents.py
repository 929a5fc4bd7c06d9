"""What a clipboard holds, in anonymous memory.

The rules:

1. Each type's bytes are written once, into a memfd, and read from there by whoever wants them, a piece at a
   time. Not into a file: what people copy are passwords.
2. There is a limit for all types together; what is over it is refused, with its size and the setting's name.
3. Two contents are alike if they have the same types with the same bytes. Digests tell.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping

from ..errors import FailureKind, VirtagentError

#: Bytes of all types together, unless the user says otherwise: an uncompressed picture of 8K fits.
SIZE_MAX = 128 * 1024 * 1024
#: Bytes read or written at a time.
PIECE = 64 * 1024


class TooLarge(VirtagentError):
    """The clipboard holds more than the user lets through."""

    kind = FailureKind.REFUSED


class Blob:
    """The bytes of one type. Freed with the last who knows it."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("virtagent-clipboard", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self._hash = hashlib.sha256()
        self.size = 0

    @classmethod
    def of(cls, data: bytes | memoryview) -> Blob:
        """Return one that holds *data*."""
        blob = cls()
        blob.append(data)
        return blob

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end. Raises OSError: there is no memory."""
        self._hash.update(data)
        at = 0
        while at < len(data):
            at += os.pwrite(self._fd, data[at:], self.size + at)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """The digest of all bytes, in hexadecimal."""
        return self._hash.hexdigest()

    def read(self, at: int, count: int = PIECE) -> bytes:
        """Return up to *count* bytes from *at* on; ``b""`` at the end."""
        return os.pread(self._fd, count, at)

    def pieces(self) -> Iterator[bytes]:
        """Yield all bytes, a piece at a time."""
        at = 0
        while piece := self.read(at):
            yield piece
            at += len(piece)

    def bytes(self) -> bytes:
        """Return all bytes at once: for what is small."""
        return self.read(0, self.size)

    def open(self) -> int:
        """Return a descriptor to read the bytes from the beginning; it is the caller's to close."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)


class Contents(Mapping[str, Blob]):
    """Types and their bytes; none: the clipboard is empty, or holds nothing of what is let through."""

    def __init__(self, blobs: Mapping[str, Blob] | None = None) -> None:
        self._blobs = dict(blobs or {})

    def __getitem__(self, name: str) -> Blob:
        return self._blobs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def only(self, names: Iterable[str]) -> Contents:
        """Return those of the types that are named."""
        return Contents({name: self._blobs[name] for name in names})

    @property
    def size(self) -> int:
        """Bytes of all types."""
        return sum(blob.size for blob in self._blobs.values())

    def alike(self, other: Contents) -> bool:
        """Whether both have the same types with the same bytes."""
        return self.digests() == other.digests()

    def digests(self) -> dict[str, str]:
        """Return the digest of each type."""
        return {name: blob.sha256 for name, blob in self._blobs.items()}


class Allowance:
    """How many bytes may still come.

    Args:
        limit: how many may in all.
    """

    def __init__(self, limit: int = SIZE_MAX) -> None:
        self.limit, self._left = limit, limit

    def take(self, count: int) -> None:
        """Count what came. Raises `TooLarge`."""
        self._left -= count
        if self._left < 0:
            raise too_large(self.limit)


def too_large(limit: int, size: int | None = None) -> TooLarge:
    """Return the error for contents over the limit."""
    holds = "more" if size is None else f"{size} bytes, more"
    return TooLarge(
        f"the clipboard holds {holds} than the {limit} bytes that are let through: "
        "raise --max-size on the host, and 'clipboard-max-size' in [session] of the guest's guest.toml"
    )
