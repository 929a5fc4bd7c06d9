"""What holds for all tests."""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Have Ctrl-C work here and in all that the tests start, though a shell has begun this in the background.

    There SIGINT is ignored, and every process would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
