"""Steps of the wall clock: deadlines, heartbeats and backoffs are monotonic, so nothing of them may move."""

from __future__ import annotations

import ast
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.faults.ledger import GRACE, NOT_READY, RESET, TIMED_OUT, Ledger
from tests.faults.stage import ROOT, processes
from tests.faults.wire import Way
from tests.guest.lab import BridgeError

YEAR = 365 * 24 * 3600
#: Steps ahead, back before the start, and small ones, as of a clock that NTP sets.
STEPS = (YEAR, -YEAR, 0, 3600, -1, 2, 0)

#: Who may ask for the wall clock at all: what tells people when something happened.
WALL_CLOCK = {
    "protocol/virtagent_protocol/observed.py",  # since when a state lasts; when an error was
    "virtagent_host/bridge/server.py",  # timestamps of events, as QMP has them
    "virtagent_host/bridge/session.py",  # the same, for one client
    "virtagent_host/cli/exec.py",  # printing when a job was started
    "virtagent_host/frontend/listing.py",  # printing when a file was modified
    "virtagent_guest/jobs/job.py",  # when a job was started, and ended
    "virtagent_guest/freeze/client.py",  # since when something is frozen
    "virtagent_guest/sessions/table.py",  # since when a session's agent is there
    "virtagent_guest/stats/sampler.py",  # when a sample was taken
    "virtagent_guest/stats/processes.py",  # the time since the boot
    "virtagent_guest/events/log.py",  # when an event happened
    "virtagent_host/events/intake.py",  # when it was received
    "virtagent_host/cli/events.py",  # printing those, and that
    "virtagent_host/cli/sessions.py",  # printing since when a session's agent is there
    # The clock itself is what these are about.
    "virtagent_host/service/restore.py",
    "virtagent_guest/methods/qga/clock.py",
    "virtagent_guest/methods/qga/rtc.py",
}


def test_only_what_is_shown_to_people_asks_for_the_wall_clock() -> None:
    askers = set()
    for package in ("protocol", "virtagent_host", "virtagent_guest"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.clock_gettime"),
                    *("datetime.now", "datetime.today", "datetime.utcnow", "date.today"),
                ):
                    askers.add(str(path.relative_to(ROOT)))
    assert askers == WALL_CLOCK


async def test_a_clock_that_is_stepped_moves_no_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    monkeypatch.setenv("FAULT_CLOCK", str(clock))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("stepped")))
    fits = (TIMED_OUT, NOT_READY, RESET)
    ledger = Ledger(
        "clock-step", "wall clocks of both ends stepped by a year, an hour, a second", "processes", fits
    )
    async with processes(tmp_path, ledger) as stage:
        session = (await stage.status())["session"]
        steps = iter(STEPS)

        async def fault() -> None:
            clock.write_text(str(next(steps)))

        await stage.repeat(fault, times=len(STEPS))
        assert (await stage.status())["session"] == session

        # A call that nobody answers ends when it should, whatever the clock does meanwhile.
        stage.wire.stall(*Way)
        async with stage.observer() as client:
            asked = time.monotonic()
            for offset in (YEAR, -YEAR):
                clock.write_text(str(offset))
                with pytest.raises(BridgeError, match="timed out: va_ping was not done within 1 s"):
                    await client.execute("va_ping", timeout=1)
            assert 2 <= time.monotonic() - asked < 2 + GRACE
        stage.wire.flow()

        # And the clock was stepped indeed.
        clock.write_text(str(10 * YEAR))
        stage.wire.cut_host()
        since = datetime.fromisoformat((await stage.ready_again(session))["since"])
        assert since.year >= datetime.now().year + 9
