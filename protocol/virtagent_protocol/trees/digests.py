"""Checksums of files, computed by whoever reads or writes them, piece by piece.

SHA-256 is computed at 1600 MB/s by a processor that knows it, but at some 50 MB/s by an emulated one (QEMU's
TCG): there it would cost more than all else. So each end says what it can do at a decent speed, and CRC-32 is
used where one cannot. Against the faults of disks, memory and programs either does; against somebody who can
write on the link neither would, since he could replace the digest as well.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from ..errors import RemoteProtocolError

SHA256, CRC32 = "sha256", "crc32"
DIGESTS = (SHA256, CRC32)

#: MB/s of SHA-256 below which CRC-32 is preferred: more than TCG does, less than a processor of this century
#: that has no instructions for it.
SLOW = 200


@lru_cache
def preferred() -> tuple[str, ...]:
    """Return the digests in the order in which this machine prefers them."""
    data = bytes(64 * 1024)
    took = min(_seconds(lambda: hashlib.sha256(data)) for _ in range(3))
    return (SHA256, CRC32) if len(data) / took > SLOW * 1e6 else (CRC32, SHA256)


def choose(receiver: Sequence[str], sender: Sequence[str]) -> str:
    """Return the digest to use, by the lists of both ends: SHA-256 unless one of them prefers another.

    Raises:
        RemoteProtocolError: they have none in common.
    """
    common = [name for name in DIGESTS if name in receiver and name in sender]
    if not common:
        raise RemoteProtocolError(f"no digest in common: {', '.join(map(repr, receiver))[:200]}")
    first = {next(name for name in names if name in common) for names in (receiver, sender)}
    return common[-1] if common[-1] in first else common[0]


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


class Hash(Protocol):
    """A digest that grows."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Add what follows."""

    def hexdigest(self) -> str:
        """Return the digest of what was added so far."""


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def new_digest(name: str) -> Hash:
    """Return the digest of `DIGESTS` of that name, of nothing yet."""
    return hashlib.sha256() if name == SHA256 else _Crc32()
