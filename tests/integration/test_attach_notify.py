"""`va-host attach` as a service manager sees it (sd_notify(3))."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import trio

VA_HOST = str(Path(sys.executable).with_name("va-host"))


async def test_the_service_manager_is_told_when_the_bridge_is_served_and_when_it_ends(tmp_path: Path) -> None:
    manager = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM)
    with manager, trio.fail_after(30):
        await manager.bind(str(tmp_path / "notify"))
        command = [VA_HOST, "--runtime-dir", str(tmp_path / "run"), "attach", "--name", "vm"]
        process = await trio.lowlevel.open_process(
            [*command, "--channel", f"unix:{tmp_path / 'nobody'}"],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            told = (await manager.recv(4096)).decode().splitlines()
            assert told[0] == "READY=1"
            assert (tmp_path / "run" / "vm.qmp").is_socket()
            process.send_signal(signal.SIGTERM)
            assert (await manager.recv(4096)).decode().splitlines()[0] == "STOPPING=1"
            assert await process.wait() == 0
            assert not (tmp_path / "run" / "vm.qmp").exists()
        finally:
            process.kill()
