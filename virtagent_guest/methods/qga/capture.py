"""What the processes of guest-exec write, kept in bounded memory.

Each stream keeps its first `STREAM_MAX` bytes, and all together `TOTAL_MAX`. What exceeds that is read, so
that no process waits for its reader, and dropped; the stream is then *truncated*.
"""

from __future__ import annotations

import threading

from virtagent_protocol.limits import MIB

#: Bytes of one stream (qemu-ga's GUEST_EXEC_MAX_OUTPUT).
STREAM_MAX = 16 * MIB
#: Bytes of all streams of all processes: two processes that write without end on both of theirs.
TOTAL_MAX = 4 * STREAM_MAX


class Budget:
    """How much may still be kept. Shared by threads."""

    def __init__(self, total: int = TOTAL_MAX) -> None:
        self._left = total
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Bytes that may still be kept."""
        return self._left

    def take(self, wanted: int) -> int:
        """Return how many of *wanted* bytes may be kept."""
        with self._lock:
            taken = min(wanted, self._left)
            self._left -= taken
            return taken

    def give_back(self, taken: int) -> None:
        """Bytes that were taken are kept no longer."""
        with self._lock:
            self._left += taken


class Captured:
    """One stream's bytes. One thread adds to it; once that has ended, another may `take`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._data = bytearray()
        self.truncated = False

    def add(self, piece: bytes) -> None:
        """Keep a piece, or as much of it as is allowed."""
        room = self._budget.take(min(len(piece), STREAM_MAX - len(self._data)))
        self._data += piece[:room]
        self.truncated = self.truncated or room < len(piece)

    def take(self) -> bytes:
        """Return what was kept, and keep it no longer."""
        data = bytes(self._data)
        self._budget.give_back(len(data))
        self._data = bytearray()
        return data
