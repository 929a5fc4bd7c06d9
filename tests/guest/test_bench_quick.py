"""The benchmarks work: every row is there. Nothing here is about how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.goals import GOALS

ROOT = Path(__file__).resolve().parents[2]
#: Seconds. It takes 40 of them, most of which the guest boots.
TIMEOUT = 400

CASES = (
    "agent memory",
    "ping",
    "ping by va-host",
    "100 pings at once, by va-host",
    "4 KiB file, by va-host",
    "exec of true, by va-host",
    "va-host ping, whole process",
    "file read",
    "file read, CPU of va-host",
    "file read, CPU of agent",
    "file write",
    "file write, CPU of va-host",
    "file write, CPU of agent",
    "ping under load, p99 : idle p50",
    "agent memory after all this",
    "agent start to first answer",
)
IN_GUEST = (
    "file read : raw port",
    "file write : raw port",
    "file read, CPU of QEMU",
    "file write, CPU of QEMU",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What `make bench` with --quick has measured."""
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    rows = json.loads(output.read_text())["rows"]
    assert isinstance(rows, list)
    return rows


def test_every_case_is_measured_natively_and_in_the_guest(rows: list[dict[str, object]]) -> None:
    wanted = {("native", case) for case in CASES} | {("guest", case) for case in (*CASES, *IN_GUEST)}
    assert {(row["place"], row["case"]) for row in rows} == wanted


def test_every_row_has_a_number_and_every_goal_a_verdict(rows: list[dict[str, object]]) -> None:
    assert all(row["virtagent"] for row in rows)
    judged = {(row["place"], row["case"]): row["verdict"] for row in rows if row["goal"]}
    assert judged.keys() == GOALS.keys()
    assert set(judged.values()) <= {"aim", "must", "MISSED"}
