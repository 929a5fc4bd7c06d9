"""The end of what a process has written, by absolute offsets. Sans-IO.

Offsets count from the first byte that the process wrote. A ring holds the last `RING_SIZE` bytes of it; who
asks for older ones gets the oldest there are, and is told their offset.
"""

from __future__ import annotations

from virtagent_protocol.limits import MIB

#: Bytes kept of one output: a few thousand lines of a log.
RING_SIZE = 1 * MIB


class Ring:
    """The last bytes of one output.

    Attributes:
        end: the offset behind the last byte: how many were written in all.
    """

    def __init__(self, size: int = RING_SIZE) -> None:
        self._size = size
        self._data = bytearray()
        self.end = 0

    def __len__(self) -> int:
        return len(self._data)

    @property
    def begin(self) -> int:
        """The offset of the oldest byte that is held."""
        return self.end - len(self._data)

    def append(self, data: bytes) -> None:
        """Take what was written."""
        self.end += len(data)
        self._data += data[-self._size :]
        if len(self._data) > self._size:
            del self._data[: len(self._data) - self._size]

    def first(self, offset: int) -> int:
        """Return the offset of the first byte that `read` would give, were it there by now."""
        return max(offset, self.begin)

    def read(self, offset: int, count: int) -> bytes:
        """Return up to *count* bytes from `first` (offset) on; none if there are none yet."""
        at = self.first(offset) - self.begin
        return bytes(self._data[at : at + count])
