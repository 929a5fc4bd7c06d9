"""The agent's log: lines on stderr, for a person or for the journal.

A log line may hold what the host sent (a method's name, a tag) or what a file said. Control
characters in it are made visible, so that nobody forges a line or drives a terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

#: Level → syslog priority, as sd-daemon(3) wants it in front of a line.
_PRIORITIES = {
    logging.CRITICAL: "<2>",
    logging.ERROR: "<3>",
    logging.WARNING: "<4>",
    logging.INFO: "<6>",
    logging.DEBUG: "<7>",
}


def visible(text: str) -> str:
    r"""Return *text* with all but visible characters and spaces written out, such as ``\x1b`` and ``\n``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class LineFormatter(logging.Formatter):
    """One record, one line; a traceback's lines follow, each marked like the first.

    Args:
        for_journal: start each line with its priority; otherwise with the program's name.
    """

    def __init__(self, *, for_journal: bool) -> None:
        super().__init__()
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        mark = _PRIORITIES.get(record.levelno, "<5>") if self._for_journal else "va-guest: "
        lines = [visible(record.getMessage())]
        if record.exc_info and record.exc_info[0]:
            trace = "".join(traceback.format_exception(*record.exc_info))
            lines += [visible(line) for line in trace.rstrip("\n").split("\n")]
        return "\n".join(mark + line for line in lines)


def set_up(program: str, *, verbose: bool) -> None:
    """Send this process's log to stderr, debug messages only if *verbose*."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(for_journal=_stderr_is_journal()))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


def _stderr_is_journal() -> bool:
    # Children inherit the variable, with other outputs: that is why it names the stream it means.
    stderr = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
