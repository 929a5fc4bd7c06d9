"""Memory that is used again.

A megabyte of fresh memory costs its user a page fault for each 4 KiB of it, which natively is as much as
filling it and in an emulated guest far more. So what bulk data passes through is taken from here, and comes
back by itself: a buffer that nobody else refers to any more is free.
"""

from __future__ import annotations

import sys


def _references(buffers: list[bytearray], index: int) -> int:
    return sys.getrefcount(buffers[index])


#: What `_references` says of a buffer that only its list refers to. It differs between versions of Python.
_FREE = _references([bytearray()], 0)


class BufferPool:
    """As many buffers as are in use at a time, of which some are kept.

    They may be taken in one thread and left in another, but not taken in two.

    Args:
        keep: how many are kept when they are not in use.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._buffers: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of that size that nobody uses; what is in it is of no meaning.

        A view of it keeps it in use as well.
        """
        buffers = self._buffers
        for index in range(len(buffers)):
            if _references(buffers, index) == _FREE:
                return _of_size(buffers[index], size)
        buffer = bytearray(size)
        if len(buffers) < self._keep:
            buffers.append(buffer)
        return buffer


def _of_size(buffer: bytearray, size: int) -> bytearray:
    # Nearly always it is the same size again, or one byte more or less: then nothing is moved.
    if len(buffer) > size:
        del buffer[size:]
    else:
        buffer.extend(bytes(size - len(buffer)))
    return buffer
