"""The connection to QEMU's monitor, against a real QEMU."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from virtagent_host.qemu.errors import QemuError
from virtagent_host.qemu.qmp import IN_FLIGHT_MAX, QmpConnection, open_qmp
from virtagent_protocol.errors import Forbidden, LinkBroken, LocalProtocolError, NotReady, NotThere

from .conftest import Qemu

DEADLINE = 20.0


@pytest.fixture(autouse=True)
def no_thread_stays() -> Any:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("qmp ")] == []


async def test_qemu_greets_and_answers(qemu: Qemu) -> None:
    async with open_qmp(qemu.path) as qmp:
        assert qmp.greeting["QMP"]["version"]["qemu"]["major"] >= 5
        assert (await qmp.execute("query-status"))["status"] == "running"
        assert {"name": "stop"} in await qmp.execute("query-commands")


async def test_an_error_of_qemu_keeps_class_and_description(qemu: Qemu) -> None:
    async with open_qmp(qemu.path) as qmp:
        with pytest.raises(QemuError, match="The command no-such has not been found") as caught:
            await qmp.execute("no-such")
        assert caught.value.error_class == "CommandNotFound"
        with pytest.raises(QemuError, match="Device 'x' not found") as caught:
            await qmp.execute("device_del", {"id": "x"})
        assert caught.value.error_class == "DeviceNotFound"


async def test_no_socket_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match=r"none\.sock: No such file"):
        async with open_qmp(tmp_path / "none.sock"):
            pass


async def test_a_socket_nobody_listens_on_is_not_there(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "stale.sock"))
    with pytest.raises(NotThere, match="nobody listens"):
        async with open_qmp(tmp_path / "stale.sock"):
            pass


async def test_a_socket_without_permission_is_forbidden(qemu: Qemu) -> None:
    qemu.path.parent.chmod(0)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)  # root may do anything
    try:
        with pytest.raises(Forbidden, match="Permission denied"):
            async with open_qmp(qemu.path):
                pass
    finally:
        if uid == 0:
            os.seteuid(0)
        qemu.path.parent.chmod(0o700)


async def test_a_monitor_that_another_client_holds_is_not_ready(qemu: Qemu) -> None:
    async with open_qmp(qemu.path):
        with pytest.raises(NotReady, match="does not greet"):
            async with open_qmp(qemu.path, patience=0.3):
                pass
    # The held place is given back: the next client gets in.
    async with open_qmp(qemu.path) as qmp:
        await qmp.execute("query-status")


@pytest.mark.parametrize(
    ("greeting", "error"),
    [(b"", LinkBroken), (b"hello\n", NotThere), (b'{"a": 1}\n', NotThere), (b"\xff\n", NotThere)],
)
async def test_what_is_no_monitor_is_told(tmp_path: Path, greeting: bytes, error: type[Exception]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other.sock"))
        listener.listen(1)

        async def greet_and_close() -> None:
            while True:
                connection, _ = await accepting.accept()
                with connection:
                    await trio.SocketStream(connection).send_all(greeting)

        accepting = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(greet_and_close)
            with pytest.raises(error):
                async with open_qmp(tmp_path / "other.sock"):
                    pass
            nursery.cancel_scope.cancel()


async def test_a_client_that_qemu_drops_once_tries_again(tmp_path: Path, qemu: Qemu) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "front.sock"))
        listener.listen(1)
        accepting = trio.socket.from_stdlib_socket(listener)

        async def drop_one_and_relay_the_next() -> None:
            first, _ = await accepting.accept()
            first.close()
            second, _ = await accepting.accept()
            client, server = trio.SocketStream(second), await trio.open_unix_socket(qemu.path)
            async with client, server, trio.open_nursery() as relay:
                relay.start_soon(copy, client, server)
                relay.start_soon(copy, server, client)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop_one_and_relay_the_next)
            async with open_qmp(tmp_path / "front.sock") as qmp:
                assert await qmp.execute("query-name") == {}
            nursery.cancel_scope.cancel()


async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    async for data in source:
        await sink.send_all(data)


async def test_when_qemu_ends_calls_fail_with_the_reason(qemu: Qemu) -> None:
    async with open_qmp(qemu.path, "demo") as qmp:
        qemu.process.send_signal(signal.SIGSTOP)
        errors: list[LinkBroken] = []

        async def call() -> None:
            with pytest.raises(LinkBroken) as caught:
                await qmp.execute("query-status")
            errors.append(caught.value)

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(3 * IN_FLIGHT_MAX):
                    nursery.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
                qemu.process.kill()
            await qmp.wait_closed()
            await call()
        assert {str(e) for e in errors} == {"demo: QEMU has closed its monitor"}
        assert len(errors) == 3 * IN_FLIGHT_MAX + 1


async def test_the_reply_of_quit_arrives(qemu: Qemu) -> None:
    async with open_qmp(qemu.path) as qmp:
        assert await qmp.execute("quit") == {}
        with trio.fail_after(DEADLINE):
            await qmp.wait_closed()


async def test_leaving_the_block_ends_calls_of_others(qemu: Qemu) -> None:
    async with open_qmp(qemu.path) as qmp:
        qemu.process.send_signal(signal.SIGSTOP)

        async def call() -> None:
            with pytest.raises(LinkBroken):
                await qmp.execute("query-status")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            await leave(qmp)
        qemu.process.send_signal(signal.SIGCONT)


async def leave(qmp: QmpConnection) -> None:
    """Do what leaving open_qmp's block does first."""
    qmp._socket.shutdown(socket.SHUT_RDWR)
    with trio.fail_after(DEADLINE):
        await qmp.wait_closed()


async def test_a_cancelled_call_leaves_the_connection_in_order(qemu: Qemu) -> None:
    async with open_qmp(qemu.path) as qmp:
        qemu.process.send_signal(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            for _ in range(4 * IN_FLIGHT_MAX):
                nursery.start_soon(qmp.execute, "query-status")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        qemu.process.send_signal(signal.SIGCONT)
        with trio.fail_after(DEADLINE):
            for _ in range(2 * IN_FLIGHT_MAX):
                assert await qmp.execute("query-name") == {}


async def test_more_calls_than_slots_are_all_answered(qemu: Qemu) -> None:
    async with open_qmp(qemu.path) as qmp:
        answers: list[object] = []

        async def call() -> None:
            answers.append(await qmp.execute("query-name"))

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(call)
        assert answers == [{}] * 100


async def test_events_come_in_order_to_every_subscriber(qemu: Qemu, caplog: pytest.LogCaptureFixture) -> None:
    async with open_qmp(qemu.path) as qmp:
        seen: list[str] = []
        done = trio.Event()

        def fail(event: dict[str, Any]) -> None:
            raise RuntimeError("a bug of a subscriber")

        def note(event: dict[str, Any]) -> None:
            seen.append(event["event"])
            assert set(event["timestamp"]) == {"seconds", "microseconds"}
            if len(seen) == 20:
                done.set()

        unsubscribe_fail = qmp.subscribe(fail)
        unsubscribe = qmp.subscribe(note)
        for _ in range(10):
            await qmp.execute("stop")
            await qmp.execute("cont")
        with trio.fail_after(DEADLINE):
            await done.wait()
        unsubscribe()
        unsubscribe_fail()
        await qmp.execute("stop")
        assert seen == ["STOP", "RESUME"] * 10
        assert "a subscriber failed on STOP" in caplog.text


async def test_file_descriptors_go_with_the_right_commands(qemu: Qemu, tmp_path: Path) -> None:
    async with open_qmp(qemu.path) as qmp:
        seen: dict[str, str] = {}
        fds_before = len(os.listdir("/proc/self/fd"))

        async def add(name: str) -> None:
            path = tmp_path / name
            path.touch()
            with path.open("rb") as file:
                added = await qmp.execute_with_fd(file.fileno(), "add-fd")
            seen[str(path)] = os.readlink(f"/proc/{qemu.process.pid}/fd/{added['fd']}")

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for i in range(20):
                    nursery.start_soon(add, f"file{i}")
                    nursery.start_soon(qmp.execute, "query-status")
        assert len(seen) == 20
        assert len(os.listdir("/proc/self/fd")) == fds_before
        assert all(sent == got for sent, got in seen.items())


@pytest.mark.parametrize("name", ["\ud800", "\uffff", float("nan"), float("inf"), b"bytes"])
async def test_what_qemu_cannot_parse_is_refused_and_the_connection_lives(qemu: Qemu, name: object) -> None:
    async with open_qmp(qemu.path) as qmp:
        with pytest.raises(LocalProtocolError, match="device_del"):
            await qmp.execute("device_del", {"id": name})
        await qmp.execute("query-status")


async def test_out_of_band_commands_reach_qemu_as_such(qemu: Qemu) -> None:
    async with open_qmp(qemu.path) as qmp:
        with pytest.raises(QemuError, match="does not support OOB"):
            await qmp.execute("query-status", oob=True)
        # migrate-recover is one of the few that do; its own error says that it was executed.
        with pytest.raises(QemuError, match=r"[Mm]igrat"):
            await qmp.execute("migrate-pause", oob=True)
