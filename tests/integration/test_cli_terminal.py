"""`va-host` on a terminal, and its monitor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clilab import TRICKY, Lab, open_lab


@pytest.fixture
async def lab(tmp_path: Path, start_qemu: Callable[..., Any]) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path, start_qemu("-S").path) as lab:
        yield lab


async def test_on_a_terminal_a_guests_control_characters_are_visible(lab: Lab) -> None:
    shown = "plain\n\\x1b]0;owned\\x07\\x1b[31mred\\xff\tend\n"
    screen, status = await lab.on_terminal("viewfile", "demo", "/tricky")
    assert (screen, status) == (shown, 0)
    assert await lab.on_terminal("viewdmesg", "demo") == (shown, 0)
    assert (await lab.run("viewdmesg", "demo")).stdout == TRICKY


async def test_colour_is_for_terminals_and_not_if_no_color_is_set(lab: Lab) -> None:
    lab.vm.ready.set()
    screen, _ = await lab.on_terminal("status", "demo")
    assert "state: \x1b[32mready\x1b[0m\n" in screen
    screen, _ = await lab.on_terminal("status", "demo", NO_COLOR="1")
    assert "state: ready\n" in screen
    assert b"state: ready\n" in (await lab.run("status", "demo")).stdout


async def test_the_monitor_runs_lines_from_a_pipe(lab: Lab) -> None:
    lines = b"va_ping\nagent_ping\n\nva_viewfile /etc/motd\ninfo status\nva_shutdown powerdown\n"
    result = await lab.run("monitor", "demo", stdin=lines)
    assert result.returncode == 0, result.stderr
    output = result.stdout.decode()
    assert output.count("status: success\n") == 2
    assert "hello\nVM status: paused (prelaunch)\n" in output
    assert "(va-host)" not in output
    assert lab.vm.shutdowns == ["powerdown"]


async def test_the_monitors_exit_status_is_that_of_the_last_failure(lab: Lab) -> None:
    result = await lab.run("monitor", stdin=b"va_viewfile /none\nva_shutdown\nva_ping\nexit\nva_fly\n")
    assert result.returncode == 1
    assert result.stdout.count(b"status: success\n") == 1
    assert result.stderr.splitlines() == [
        b"va-host: refused: open failed: /none: No such file or directory (fault 6)",
        b"va-host: refused: Parameter 'shutdown_mode' is missing",
    ]


async def test_the_monitor_prompts_and_completes_on_a_terminal(lab: Lab) -> None:
    typed = "va_pi\t\nva_shutdown re\t\ninfo statu\t\nva_viewfile /tricky\nexit"
    screen, status = await lab.on_terminal("monitor", "demo", typed=typed)
    assert status == 0
    assert "(va-host) va_ping" in screen
    assert "status: success" in screen
    assert lab.vm.shutdowns == ["reboot"]
    assert "VM status: paused (prelaunch)" in screen
    assert "\\x1b]0;owned\\x07" in screen
    assert "\x1b]0;owned" not in screen
    history = lab.runtime.path / "state/virtagent/monitor_history"
    assert "va_viewfile /tricky" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


async def test_the_monitors_help_lists_ours_then_qemus(lab: Lab) -> None:
    result = await lab.run("monitor", stdin=b"help\nhelp va_shutdown\nhelp info status\n")
    output = result.stdout.decode()
    assert (
        output.index("va_viewfile filepath [offset]") < output.index("agent_ping") < output.index("info [sub")
    )
    assert "shutdown_mode: what to end in, halt|powerdown|reboot" in output
    assert "info status  -- show the current VM status" in output
