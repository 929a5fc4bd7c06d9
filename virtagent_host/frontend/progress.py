"""A line on the terminal that says how far a transfer is; nothing where nobody watches."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import Protocol

from virtagent_protocol.text import visible_line

#: Seconds between two lines, and over which the rate is taken.
_EVERY, _RATE_OVER = 0.2, 5.0
_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_BAR = 20


class Tracked(Protocol):
    """What is watched: `Sent` or `Received`."""

    entries: int
    size: int
    total: int | None


class Progress:
    """Shows progress on stderr while the block runs, if that is a terminal.

    Args:
        what: the name of what is transferred.
        tracked: changed by another thread.
        quiet: show nothing.
    """

    def __init__(self, what: str, tracked: Tracked, *, quiet: bool) -> None:
        self._what = visible_line(what)
        self._tracked = tracked
        self._begun = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self._begun, 0)])
        self._over = threading.Event()
        self._thread = None
        if not quiet and sys.stderr.isatty():
            self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        while not self._over.wait(_EVERY):
            self._put(self.line(time.monotonic()) + "\r")
        # The last line stays, with the rate of the whole.
        self._samples = deque([(self._begun, 0)])
        self._put(self.line(time.monotonic()) + "\n")

    def _put(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()

    def line(self, now: float) -> str:
        """Return the line for that time (`time.monotonic`)."""
        size, total = self._tracked.size, self._tracked.total
        while len(self._samples) > 1 and self._samples[0][0] < now - _RATE_OVER:
            self._samples.popleft()
        then, before = self._samples[0]
        self._samples.append((now, size))
        rate = (size - before) / (now - then) if now > then else 0.0
        parts = [self._what, amount(size), f"{amount(rate)}/s"]
        if total:
            done = min(size / total, 1.0)
            filled = int(done * _BAR)
            parts.insert(1, f"[{'#' * filled}{'.' * (_BAR - filled)}] {int(100 * done):3d}%")
            if rate and size < total:
                parts.append(f"ETA {clock((total - size) / rate)}")
        elif self._tracked.entries > 1:
            parts.insert(1, f"{self._tracked.entries} entries")
        return "  ".join(parts)


def amount(count: float) -> str:
    """Return a number of bytes as people read it: ``12.3 MB``, with powers of 1000."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def clock(seconds: float) -> str:
    """Return a duration as ``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(round(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
