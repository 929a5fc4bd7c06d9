"""Numbers as people read them."""

from __future__ import annotations

_STEP = 1024.0
_PREFIXES = ("", "K", "M", "G", "T", "P")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def size(count: float) -> str:
    """Return bytes with a prefix and at most four digits: ``1.5G``, ``980K``, ``12``."""
    for prefix in _PREFIXES:
        if count < _STEP or prefix == _PREFIXES[-1]:
            break
        count /= _STEP
    return f"{count:.0f}{prefix}" if not prefix or count >= 10 else f"{count:.1f}{prefix}"


def percent(share: float) -> str:
    """Return a share as a percentage: ``31%``."""
    return f"{100 * share:.0f}%"


def duration(seconds: float) -> str:
    """Return seconds as days, hours and minutes: ``3d 4:05``, ``4:05`` or, below an hour, ``5 min``."""
    whole = int(seconds)
    days, hours, minutes = whole // _DAY, whole % _DAY // _HOUR, whole % _HOUR // _MINUTE
    if not days and not hours:
        return f"{minutes} min"
    return (f"{days}d " if days else "") + f"{hours}:{minutes:02}"
