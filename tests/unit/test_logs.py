"""Log lines."""

from __future__ import annotations

import logging
import sys

from virtagent_protocol.logs import BURST, LENGTH_MAX, RATE, LineFormatter, RateLimit


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


def test_a_line_of_any_length_is_cut() -> None:
    line = LineFormatter("va-guest", for_journal=False).format(record("\x1b" * 10**6))
    assert len(line) == len("va-guest: ") + LENGTH_MAX + len("…")


def test_a_flood_of_lines_is_thinned_out_and_what_was_left_out_is_told() -> None:
    now = 0.0
    limit = RateLimit(lambda: now)
    passed = sum(limit.filter(record("hello")) for _ in range(BURST + 500))
    assert passed == BURST
    now += 1
    following = [record("100 %") for _ in range(BURST)]
    flowing = [line for line in following if limit.filter(line)]
    assert len(flowing) == RATE
    assert flowing[0].getMessage() == "(500 lines left out) 100 %"
    assert flowing[1].getMessage() == "100 %"


def test_a_flood_of_lesser_lines_hides_no_error() -> None:
    limit = RateLimit(lambda: 0.0)
    for _ in range(BURST + 5):
        limit.filter(record("hello"))
    error = record("broken", logging.ERROR)
    assert limit.filter(error)
    assert error.getMessage() == "(5 lines left out) broken"


def test_a_line_that_would_be_left_out_counts_without_being_made() -> None:
    now = 0.0
    limit = RateLimit(lambda: now)
    record = logging.makeLogRecord({"msg": "x", "levelno": logging.INFO})
    for _ in range(BURST):
        assert limit.room()
        assert limit.filter(record)
    for _ in range(3):
        assert not limit.room()
    now = 1.0
    assert limit.room()
    assert limit.filter(record)
    assert record.getMessage() == "(3 lines left out) x"
