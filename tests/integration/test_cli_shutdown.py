"""`va-host shutdown` with a deadline: what it passes on, what it says, and what is not possible."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.guest.lab import Lab as RealLab
from tests.integration.clilab import Lab, open_lab


@pytest.fixture
async def lab(tmp_path: Path, start_qemu: Callable[..., Any]) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path, start_qemu("-S").path) as lab:
        yield lab


async def test_a_deadline_makes_it_graded_and_each_step_is_told(lab: Lab) -> None:
    result = await lab.run("shutdown", "demo", "--deadline", "30")
    assert (result.returncode, result.stdout) == (0, b"agent: not ready: port-closed (0.0 s)\n")
    result = await lab.run("shutdown", "--deadline", "30", "--json", "powerdown")
    assert json.loads(result.stdout)["by"] == "acpi"
    assert lab.vm.shutdowns == [30.0, 30.0]


async def test_a_deadline_goes_with_powerdown_only(lab: Lab) -> None:
    result = await lab.run("shutdown", "demo", "reboot", "--deadline", "30")
    assert result.returncode == 1
    assert b"'deadline' goes with 'powerdown' only: ACPI knows no reboot" in result.stderr
    assert lab.vm.shutdowns == []


async def test_without_a_deadline_the_mode_must_be_said(lab: Lab) -> None:
    for arguments in ((), ("demo",)):
        result = await lab.run("shutdown", *arguments)
        assert result.returncode == 2
        assert b"say what to end in: halt, powerdown, reboot" in result.stderr
    result = await lab.run("shutdown", "demo", "other", "halt")
    assert result.returncode == 2
    assert b"unexpected argument: other" in result.stderr
    assert lab.vm.shutdowns == []


async def test_attached_without_qmp_it_says_what_is_not_possible(tmp_path: Path) -> None:
    real = RealLab(tmp_path)
    async with real.serving("attach", "--channel", f"unix:{tmp_path}/none"):
        async with real.client():
            pass
        said = await real.fail(3, "shutdown", "--deadline", "5")
    assert "attached without QMP: it can neither press the power button (ACPI) nor end QEMU" in said
    assert "Attach with --qmp, or leave the deadline out" in said
