"""A token bucket: so many at once, so many a second after that."""

from __future__ import annotations


class TokenBucket:
    """Full at first; refills steadily.

    Args:
        burst: tokens that it holds when full.
        rate: tokens that it gains a second.
    """

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._filled_at: float | None = None

    def has(self, now: float) -> bool:
        """Whether there is a token.

        Args:
            now: seconds of any clock that does not go back; the same one at each call.
        """
        if self._filled_at is not None:
            self._tokens = min(self._burst, self._tokens + self._rate * (now - self._filled_at))
        self._filled_at = now
        return self._tokens >= 1

    def take(self, now: float) -> bool:
        """Take one token if there is one; argument as for `has`."""
        if not self.has(now):
            return False
        self._tokens -= 1
        return True
