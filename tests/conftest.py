"""What holds for all tests."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Have signals do here, and in all that the tests start, what they do by default.

    A shell without job control has a background job ignore SIGINT, nohup SIGHUP; every process inherits that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Agents that tests start on this machine have no local socket unless their configuration says where.
    # There is one default, and several agents.
    os.environ["VIRTAGENT_SOCKET"] = ""
