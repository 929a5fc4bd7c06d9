"""Log lines."""

from __future__ import annotations

import logging
import sys

from virtagent_protocol.logs import LineFormatter


def record(message: str, level: int = logging.INFO, *, with_trace: bool = False) -> logging.LogRecord:
    trace = sys.exc_info() if with_trace else None
    return logging.LogRecord("virtagent.test", level, "", 0, message, None, trace)


def test_a_message_cannot_forge_a_line_or_drive_a_terminal() -> None:
    formatter = LineFormatter("va-guest", for_journal=True)
    forged = "a\n<0>b\x1b[2J\x9b\u202e\ud800 ä\t"
    assert formatter.format(record(forged)) == r"<6>a\n<0>b\x1b[2J\x9b\u202e\ud800 ä\t"


def test_a_line_for_the_journal_begins_with_its_priority() -> None:
    formatter = LineFormatter("va-guest", for_journal=True)
    assert formatter.format(record("hello")) == "<6>hello"
    assert formatter.format(record("oh", logging.WARNING)) == "<4>oh"
    assert formatter.format(record("no", logging.ERROR)) == "<3>no"


def test_a_line_for_people_begins_with_the_program() -> None:
    assert LineFormatter("va-guest", for_journal=False).format(record("hello")) == "va-guest: hello"


def test_every_line_of_a_traceback_is_marked() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        text = LineFormatter("va-guest", for_journal=True).format(
            record("failed", logging.ERROR, with_trace=True)
        )
    lines = text.split("\n")
    assert lines[0] == "<3>failed"
    assert "<3>ValueError: two" in lines
    assert all(line.startswith("<3>") for line in lines)
