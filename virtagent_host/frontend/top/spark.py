"""A curve of past values in one line of characters."""

from __future__ import annotations

from collections.abc import Sequence

#: From nothing to the top, for terminals that have these characters, and for others.
BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN = " .:-=+*#@"


def sparkline(values: Sequence[float], width: int, top: float, levels: str = BLOCKS) -> str:
    """Return the latest values as *width* characters, the newest last; blanks stand for what is not known.

    Args:
        values: at least 0; what exceeds the top is drawn as the top.
        width: characters.
        top: the value that has the highest character.
        levels: characters, the lowest first.
    """
    shown = list(values)[-width:] if width > 0 else []
    return "".join(_level(value, top, levels) for value in shown).rjust(max(width, 0))


def _level(value: float, top: float, levels: str) -> str:
    if value <= 0 or top <= 0:
        return levels[0]
    # What is not nothing is seen.
    return levels[min(max(round(value / top * (len(levels) - 1)), 1), len(levels) - 1)]
