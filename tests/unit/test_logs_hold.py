"""A log that must not be written for a while (virtagent_protocol.logs.hold)."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from virtagent_protocol import logs


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logs.HoldingHandler(stream)
    root = logging.getLogger()
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)


def test_lines_that_are_held_come_in_order_when_they_are_released(output: io.StringIO) -> None:
    log = logging.getLogger("test")
    log.warning("before")
    logs.hold()
    log.warning("first")
    log.warning("second")
    assert output.getvalue() == "before\n"
    logs.release()
    log.warning("after")
    assert output.getvalue().split() == ["before", "first", "second", "after"]


def test_only_the_last_lines_are_kept_and_the_others_are_counted(output: io.StringIO) -> None:
    logs.hold()
    for number in range(logs.HELD_MAX + 7):
        logging.getLogger("test").warning("line %d", number)
    logs.release()
    lines = output.getvalue().splitlines()
    assert lines[0] == "(7 lines left out)"
    assert lines[1:] == [f"line {number}" for number in range(7, logs.HELD_MAX + 7)]


def test_holding_twice_loses_nothing(output: io.StringIO) -> None:
    logs.hold()
    logging.getLogger("test").warning("kept")
    logs.hold()
    logs.release()
    assert output.getvalue() == "kept\n"
