"""`va-host attach --retry` while there is no QEMU; test_guest has one that comes back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.guest.lab import BridgeError, Lab


async def test_the_bridge_of_a_qemu_that_is_awaited_says_so(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    monitor = tmp_path / "qmp.sock"
    async with lab.serving("attach", "--qmp", str(monitor), "--retry") as service:
        # Its first state is no-port, too, before anything was tried.
        async with lab.client() as client:
            while "waiting for QEMU" not in (status := await client.execute("va_status"))["reason"]:
                await client.event("VA_STATE_CHANGE", state="no-port")
            assert status["reason"].startswith(f"waiting for QEMU: {monitor}: No such file or directory")
            with pytest.raises(BridgeError, match="query-status is a command for QEMU, and there is none"):
                await client.execute("query-status")
            with pytest.raises(BridgeError, match="not ready: no-port: waiting for QEMU"):
                await client.execute("va_ping")
        await lab.succeed("detach")
        assert await service.ended() == 0
        assert service.said.count("waiting for QEMU") == 1, service.said


async def test_a_va_host_that_waits_for_qemu_ends_by_a_signal(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.serving("attach", "--qmp", str(tmp_path / "qmp.sock"), "--retry") as service:
        async with lab.client() as client:
            await client.execute("va_status")
        service.send_signal(signal.SIGTERM)
        assert await service.ended() == 0


async def test_retry_is_for_a_monitor(tmp_path: Path) -> None:
    result = await Lab(tmp_path).run("attach", "--channel", "unix:/nonexistent", "--retry")
    assert result.status == 2
    assert "--retry goes with --qmp" in result.stderr
