"""Credit windows: how much of a stream may be under way (SPEC.md section 12).

The rules:

1. The receiver decides. It grants credit, the sender spends it, and what is sent without credit
   is an offence.
2. Credit for what was consumed is granted back in large parts of the window, not byte by byte: a
   credit message costs as much as a chunk does.
3. Outstanding credit and what is buffered never exceed the window together.
"""

from __future__ import annotations

from .errors import RemoteProtocolError
from .limits import CREDIT_MAX


class SendWindow:
    """What the receiver lets us send.

    Args:
        credit: what it grants at the beginning, in bytes.
    """

    def __init__(self, credit: int) -> None:
        self.credit = credit

    def grant(self, count: int) -> None:
        """The receiver grants *count* bytes more.

        Raises:
            RemoteProtocolError: it has granted more than any window can be.
        """
        self.credit += count
        if self.credit > CREDIT_MAX:
            raise RemoteProtocolError(f"more than {CREDIT_MAX} bytes of credit were granted")

    def spend(self, count: int) -> None:
        """Send *count* bytes, which must be covered."""
        assert 0 <= count <= self.credit
        self.credit -= count


class ReceiveWindow:
    """What we let the sender send.

    Args:
        size: of the window, in bytes; the sender begins with as much credit.
        part: of the window that is granted back at a time.
    """

    def __init__(self, size: int, part: float = 0.5) -> None:
        self._part = part
        self._due = size * part
        self._outstanding = size
        self._consumed = 0

    def widen(self, extra: int) -> int:
        """Make the window larger; return the credit to grant for that."""
        self._outstanding += extra
        self._due += extra * self._part
        return extra

    def receive(self, count: int) -> bool:
        """Take note of *count* bytes that came; return whether they were covered by credit."""
        if count > self._outstanding:
            return False
        self._outstanding -= count
        return True

    def consume(self, count: int) -> int:
        """Take note of *count* bytes that are held no more; return the credit to grant now, or 0."""
        self._consumed += count
        return self.owed() if self._consumed >= self._due else 0

    def owed(self) -> int:
        """Return the credit for all that is held no more, to be granted now; it may be 0."""
        credit, self._consumed = self._consumed, 0
        self._outstanding += credit
        return credit
