"""The log of either end: lines on stderr, for a person or for the journal.

A log line may hold what the peer sent (a method's name, a tag) or what a file said. Control
characters in it are made visible, so that nobody forges a line or drives a terminal; long ones are
cut, and floods are thinned out, so that nobody fills a disk: what was left out is counted and told.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import TextIO

from .bucket import TokenBucket
from .text import visible_line

#: Lines that a process logs at once, and then each second. A busy link logs a line for each call it serves,
#: and nobody reads more than this; a guest that floods its host with calls writes 10,000.
BURST, RATE = 1000, 20.0
#: Characters of a line. A line that quotes what a peer sent could be a few MiB long.
LENGTH_MAX = 2000

#: Lines kept while none may be written (`hold`); the last ones.
HELD_MAX = 500

#: Level → syslog priority, as sd-daemon(3) wants it in front of a line.
_PRIORITIES = {
    logging.CRITICAL: "<2>",
    logging.ERROR: "<3>",
    logging.WARNING: "<4>",
    logging.INFO: "<6>",
    logging.DEBUG: "<7>",
}


class LineFormatter(logging.Formatter):
    """One record, one line; a traceback's lines follow, each marked like the first.

    Args:
        program: what each line starts with.
        for_journal: start each line with its priority instead; the journal knows the program.
    """

    def __init__(self, program: str, *, for_journal: bool) -> None:
        super().__init__()
        self._program = program
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        mark = _PRIORITIES.get(record.levelno, "<5>") if self._for_journal else f"{self._program}: "
        lines = [record.getMessage()]
        if record.exc_info and record.exc_info[0]:
            trace = "".join(traceback.format_exception(*record.exc_info))
            lines += trace.rstrip("\n").split("\n")
        return "\n".join(mark + _cut(visible_line(line[: LENGTH_MAX + 1])) for line in lines)


def _cut(line: str) -> str:
    return line if len(line) <= LENGTH_MAX else line[:LENGTH_MAX] + "…"


class RateLimit(logging.Filter):
    """Lets `BURST` records pass, then `RATE` a second. The next one tells how many were left out.

    Warnings and errors have a bucket of their own: a flood of lesser lines must not hide them.

    Args:
        clock: seconds that do not go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._buckets = {serious: TokenBucket(BURST, RATE) for serious in (False, True)}
        self._suppressed = 0

    def room(self) -> bool:
        """Whether an informative line would pass; if not, it counts as left out."""
        if self._buckets[False].has(self._clock()):
            return True
        self._suppressed += 1
        return False

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._buckets[record.levelno >= logging.WARNING].take(self._clock()):
            self._suppressed += 1
            return False
        if self._suppressed:
            record.msg = f"({self._suppressed} lines left out) {record.getMessage()}"
            record.args = None
            self._suppressed = 0
        return True


class HoldingHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream; while it is held, it keeps them.

    A write to a log on a frozen file system hangs, and so does one to a journal that waits for its own.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._held: deque[logging.LogRecord] | None = None
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._held is None:
            super().emit(record)
        else:
            self._lost += len(self._held) == HELD_MAX
            self._held.append(record)

    def hold(self) -> None:
        """Write nothing until `resume`."""
        with self.lock or nullcontext():
            self._held = self._held or deque(maxlen=HELD_MAX)

    def resume(self) -> None:
        """Write what was kept, and go on."""
        with self.lock or nullcontext():
            held, self._held = self._held or (), None
            if self._lost:
                super().emit(logging.makeLogRecord({"msg": f"({self._lost} lines left out)"}))
                self._lost = 0
            for record in held:
                super().emit(record)


_limit: RateLimit | None = None


def room() -> bool:
    """Whether the log takes an informative line now.

    To make a record that is left out costs as much as to answer a ping: who logs often asks before. What is
    not made counts as left out.
    """
    return _limit is None or _limit.room()


def hold() -> None:
    """Keep the lines of this process's log until `release`: a file system that is frozen must not stop it."""
    for handler in _holding():
        handler.hold()


def release() -> None:
    """Write the lines that were kept since `hold`."""
    for handler in _holding():
        handler.resume()


def _holding() -> list[HoldingHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, HoldingHandler)]


def set_up(program: str, *, verbose: bool) -> None:
    """Send this process's log to stderr, debug messages only if *verbose*.

    Args:
        program: the process's name, for people.
        verbose: whether to log debug messages.
    """
    # No line shows where it was logged, nor by which thread and process: looking that up is half its cost.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = HoldingHandler(sys.stderr)
    global _limit
    _limit = RateLimit()
    handler.addFilter(_limit)
    handler.setFormatter(LineFormatter(program, for_journal=_stderr_is_journal()))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


def _stderr_is_journal() -> bool:
    # Children inherit the variable, with other outputs: that is why it names the stream it means.
    stderr = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
