"""The log of either end: lines on stderr, for a person or for the journal.

A log line may hold what the peer sent (a method's name, a tag) or what a file said. Control
characters in it are made visible, so that nobody forges a line or drives a terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

from .text import visible_line

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
        lines = [visible_line(record.getMessage())]
        if record.exc_info and record.exc_info[0]:
            trace = "".join(traceback.format_exception(*record.exc_info))
            lines += [visible_line(line) for line in trace.rstrip("\n").split("\n")]
        return "\n".join(mark + line for line in lines)


def set_up(program: str, *, verbose: bool) -> None:
    """Send this process's log to stderr, debug messages only if *verbose*.

    Args:
        program: the process's name, for people.
        verbose: whether to log debug messages.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(program, for_journal=_stderr_is_journal()))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


def _stderr_is_journal() -> bool:
    # Children inherit the variable, with other outputs: that is why it names the stream it means.
    stderr = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
