"""Rates from two readings of a counter.

The rules:

1. A counter of 32 bits begins again at 0 (I/O times in /proc/diskstats do so after 49 days). It is taken for
   that only if it was close to its end; else the thing that it counts for is a new one, and of that the
   growth is not known: 0.
2. A clock that stands still, or goes back, gives no rate: 0, never an error.
"""

from __future__ import annotations

_WRAP = 2**32
#: The most that a counter may have grown if it wrapped. At one reading a second, of bytes, this is 8 Gbit/s.
_GROWTH_MAX = 2**30


def grown(before: int, after: int) -> int:
    """Return by how much a counter has grown."""
    if after >= before:
        return after - before
    wrapped = after + _WRAP - before
    return wrapped if before < _WRAP and wrapped < _GROWTH_MAX else 0


def per_second(before: int, after: int, seconds: float) -> float:
    """Return the rate at which a counter has grown in so many seconds."""
    return grown(before, after) / seconds if seconds > 0 else 0.0


def share(part: float, whole: float) -> float:
    """Return a part as a share of the whole, 0 to 1."""
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
