"""The bridge, in front of a real QEMU, with the clients that people use."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from qemu.qmp import ExecuteError, QMPClient

from virtagent_host.bridge import outbox
from virtagent_host.bridge.listener import CannotServe, private_listener
from virtagent_host.bridge.server import Bridge, CommandHandler
from virtagent_host.commands import Client
from virtagent_host.qemu.qmp import QmpConnection, open_qmp
from virtagent_protocol.errors import CallTimeout, Forbidden, NotReady, NotThere, SessionReset

from .conftest import Qemu
from .rawqmp import DEADLINE, RawQmp

#: A reply that is larger than all that may wait in events.
BIG = 3 * outbox.EVENT_BYTES_MAX

QMP_SHELL = Path(sys.executable).parent / "qmp-shell"


async def va_echo(arguments: dict[str, Any], client: Client) -> object:
    return {"status": "success", **arguments}


async def va_nothing(arguments: dict[str, Any], client: Client) -> None:
    return None


async def va_big(arguments: dict[str, Any], client: Client) -> object:
    return "x" * BIG


async def va_crash(arguments: dict[str, Any], client: Client) -> object:
    raise KeyError("a bug of a handler")


async def va_unserializable(arguments: dict[str, Any], client: Client) -> object:
    return b"bytes"


def failing(error: Exception) -> CommandHandler:
    async def handler(arguments: dict[str, Any], client: Client) -> object:
        raise error

    return handler


class Gate:
    """A command that waits until the test lets it go, and says when it has been reached or cancelled."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.open = trio.Event()
        self.cancelled = trio.Event()

    async def __call__(self, arguments: dict[str, Any], client: Client) -> object:
        self.entered.set()
        try:
            await self.open.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return {}


@dataclass
class Setup:
    """A bridge that is being served at `path`."""

    bridge: Bridge
    path: Path
    gate: Gate
    commands: dict[str, CommandHandler]
    qmp: QmpConnection | None


def make_bridge(path: Path, qmp: QmpConnection | None) -> Setup:
    gate = Gate()
    commands: dict[str, CommandHandler] = {
        "va_echo": va_echo,
        "va_nothing": va_nothing,
        "va_big": va_big,
        "va_crash": va_crash,
        "va_unserializable": va_unserializable,
        "va_gate": gate,
        "va_not_there": failing(NotThere("no such VM")),
        "va_not_ready": failing(NotReady("no agent has ever opened the port")),
        "va_forbidden": failing(Forbidden("the policy says no")),
        "va_timed_out": failing(CallTimeout("no answer within 5 s")),
        "va_broken": failing(SessionReset("the guest rebooted")),
    }
    return Setup(Bridge(commands, qmp), path, gate, commands, qmp)


@pytest.fixture
async def served(qemu: Qemu, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Setup]:
    """A bridge in front of QEMU."""
    async with open_qmp(qemu.path, "demo") as qmp:
        setup = make_bridge(tmp_path / "demo.qmp", qmp)
        await nursery.start(setup.bridge.serve, setup.path)
        yield setup
        nursery.cancel_scope.cancel()


@pytest.fixture
async def alone(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Setup]:
    """A bridge of a VM that is attached without QMP."""
    setup = make_bridge(tmp_path / "alone.qmp", None)
    await nursery.start(setup.bridge.serve, setup.path)
    yield setup
    nursery.cancel_scope.cancel()


# Clients as people use them -----------------------------------------------------------------------------


async def test_qmpclient_of_qemu_qmp_works(served: Setup) -> None:
    async def session() -> list[object]:
        client = QMPClient("test")
        await client.connect(str(served.path))
        results: list[object] = [await client.execute("va_echo", {"text": "hé\r\n"})]
        with client.listener("STOP") as listener:
            await client.execute("stop")
            results.append((await listener.get())["event"])
        try:
            await client.execute("no-such")
        except ExecuteError as error:
            results += [error.error_class, str(error)]
        results.append(await client.execute("query-status"))
        await client.disconnect()
        return results

    with trio.fail_after(DEADLINE):
        echo, event, error_class, desc, status = await trio.to_thread.run_sync(lambda: asyncio.run(session()))
    assert echo == {"status": "success", "text": "hé\r\n"}
    assert event == "STOP"
    assert (error_class, desc) == ("CommandNotFound", "The command no-such has not been found")
    assert isinstance(status, dict)
    assert status["status"] == "paused"


async def test_qmp_shell_works(served: Setup, tmp_path: Path) -> None:
    script = b"query-status\nva_echo text=hello\nva_not_ready\nno-such\n"
    with trio.fail_after(DEADLINE):
        done = await trio.run_process(
            [str(QMP_SHELL), str(served.path)],
            stdin=script,
            capture_stdout=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )
    out = done.stdout.decode()
    assert "Connected to QEMU" in out
    assert '"status": "running"' in out
    assert '{"return": {"status": "success", "text": "hello"}' in out
    assert "not ready: no agent has ever opened the port" in out
    assert "The command no-such has not been found" in out


async def test_socat_works_without_a_newline_and_gets_its_replies_after_its_end(served: Setup) -> None:
    if shutil.which("socat") is None:
        pytest.fail("socat is needed by this test: apt install socat")
    with trio.fail_after(DEADLINE):
        done = await trio.run_process(
            ["socat", "-t10", "-", f"UNIX-CONNECT:{served.path}"],
            stdin=b"{'execute':'qmp_capabilities'}{'execute':'va_echo','id':1}{'execute':'query-name','id':2}",
            capture_stdout=True,
        )
    greeting, *replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert greeting["QMP"]["version"]["qemu"]["major"] >= 5
    assert replies == [
        {"return": {}},
        {"return": {"status": "success"}, "id": 1},
        {"return": {}, "id": 2},
    ]


# The session --------------------------------------------------------------------------------------------


async def test_the_greeting_is_that_of_qemu(served: Setup) -> None:
    async with RawQmp(served.path) as client:
        assert served.qmp is not None
        assert client.greeting == served.qmp.greeting


async def test_commands_and_events_wait_for_the_negotiation(served: Setup) -> None:
    async with RawQmp(served.path) as client, RawQmp(served.path) as other:
        for command in ("query-status", "va_echo"):
            reply = await client.call({"execute": command, "id": 1})
            assert reply["error"] == {
                "class": "CommandNotFound",
                "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
            }
        served.bridge.broadcast("VA_TEST", {"n": 1})
        await other.negotiate()
        await client.send(b'{"execute":"qmp_capabilities"}')
        assert await client.receive() == {"return": {}}
        served.bridge.broadcast("VA_TEST", {"n": 2})
        assert (await client.receive())["data"] == {"n": 2}
        reply = await client.call({"execute": "qmp_capabilities"})
        assert reply["error"]["desc"] == "Capabilities negotiation is already complete, command ignored"


@pytest.mark.parametrize(
    ("arguments", "desc"),
    [
        ({"enable": ["no-such"]}, "does not accept value 'no-such'"),
        ({"enable": 5}, "Invalid parameter type for 'enable', expected: array"),
        ({"other": 5}, "Parameter 'other' is unexpected"),
    ],
)
async def test_a_negotiation_that_fails_can_be_repeated(
    served: Setup, arguments: dict[str, object], desc: str
) -> None:
    async with RawQmp(served.path) as client:
        reply = await client.call({"execute": "qmp_capabilities", "arguments": arguments})
        assert desc in reply["error"]["desc"]
        await client.negotiate()


@pytest.mark.parametrize("request_id", [0, "text", None, 1.5, [1, {"a": None}], {"x": "é"}, True])
async def test_any_id_is_kept(served: Setup, request_id: object) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        for command in ("va_nothing", "query-name"):
            reply = await client.call({"execute": command, "id": request_id})
            assert reply == {"return": {}, "id": request_id}
        assert (await client.call({"execute": "va_broken", "id": request_id}))["id"] == request_id
        assert (await client.call({"execute": "no-such", "id": request_id}))["id"] == request_id


async def test_query_commands_lists_both_and_the_schema_is_that_of_qemu(served: Setup) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        commands = (await client.call({"execute": "query-commands"}))["return"]
        assert {"name": "va_echo"} in commands
        assert {"name": "device_add"} in commands
        assert served.qmp is not None
        schema = (await client.call({"execute": "query-qmp-schema"}))["return"]
        assert schema == await served.qmp.execute("query-qmp-schema")


@pytest.mark.parametrize(
    "message",
    [
        {"execute": "no-such", "arguments": {}},
        {"execute": "device_del", "arguments": {"id": "x"}},
        {"execute": "device_del"},
        {"execute": "query-status", "arguments": {"unexpected": 1}},
        {"execute": "getfd", "arguments": {"fdname": "x"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "info version"}},
        {"execute": 3, "id": 1},
        {"execute": "query-status", "arguments": 3, "id": 1},
        {"execute": "query-status", "control": 3, "id": 1},
        {"exec-oob": "query-status", "id": 1},
        {"execute": "query-status", "exec-oob": "query-status"},
        {"id": 4},
        {},
    ],
)
async def test_replies_are_those_of_qemu_itself(served: Setup, qemu: Qemu, message: dict[str, Any]) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        through_bridge = await client.call(message)
    assert served.qmp is not None
    served.qmp._socket.shutdown(socket.SHUT_RDWR)  # one monitor, one client: make room
    async with RawQmp(qemu.path) as direct:
        await direct.negotiate()
        assert through_bridge == await direct.call(message)


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\n",
        b'{"execute: "x"}\n',
        b"\xff",
        b'{"execute": "\xff',
        b'{"execute": "\xc3"}',
        b"]",
        b"{1}",
        b"[1]",
        b"3\n",
    ],
)
async def test_garbage_costs_an_error_and_the_session_goes_on(served: Setup, garbage: bytes) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        await client.send(garbage)
        reply = await client.receive()
        assert reply["error"]["class"] == "GenericError"
        assert "JSON" in reply["error"]["desc"]
        assert await client.call({"execute": "query-name", "id": 1}) == {"return": {}, "id": 1}


async def test_what_qemu_cannot_parse_does_not_cost_the_others_their_monitor(served: Setup) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        reply = await client.call({"execute": "device_del", "arguments": {"id": "\ud800"}, "id": 1})
        assert reply["id"] == 1
        assert "not a valid Unicode character" in reply["error"]["desc"]
        assert "return" in await client.call({"execute": "query-status"})


# Our own commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "error_class", "desc"),
    [
        ("va_not_there", "DeviceNotFound", "not there: no such VM"),
        ("va_not_ready", "DeviceNotActive", "not ready: no agent has ever opened the port"),
        ("va_forbidden", "GenericError", "forbidden: the policy says no"),
        ("va_timed_out", "GenericError", "timed out: no answer within 5 s"),
        ("va_broken", "GenericError", "broken: the guest rebooted"),
    ],
)
async def test_an_error_says_its_kind(served: Setup, command: str, error_class: str, desc: str) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        reply = await client.call({"execute": command})
        assert reply == {"error": {"class": error_class, "desc": desc}}


@pytest.mark.parametrize("command", ["va_crash", "va_unserializable"])
async def test_a_bug_in_a_handler_is_an_error_and_a_traceback_in_the_log(
    served: Setup, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        reply = await client.call({"execute": command, "id": 7})
        assert reply["error"]["class"] == "GenericError"
        assert reply["error"]["desc"].startswith("broken: internal error")
        assert "Traceback" in caplog.text
        assert (await client.call({"execute": "va_nothing"})) == {"return": {}}


async def test_one_client_is_answered_in_order_and_others_do_not_wait_for_it(served: Setup) -> None:
    async with RawQmp(served.path) as waiting, RawQmp(served.path) as other:
        await waiting.negotiate()
        await other.negotiate()
        await waiting.send(b'{"execute":"va_gate","id":1}{"execute":"query-name","id":2}')
        await served.gate.entered.wait()
        assert "return" in await other.call({"execute": "query-status"})
        assert "return" in await other.call({"execute": "va_echo"})
        served.gate.open.set()
        assert [(await waiting.receive())["id"] for _ in range(2)] == [1, 2]


async def test_a_client_that_is_gone_has_its_command_cancelled(served: Setup) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        await client.send(b'{"execute":"va_gate"}')
        await served.gate.entered.wait()
    with trio.fail_after(DEADLINE):
        await served.gate.cancelled.wait()


async def test_a_client_that_only_sends_is_neither_read_nor_executed_without_end(served: Setup) -> None:
    sent = executed = 0

    async def va_count(arguments: dict[str, Any], client: Client) -> object:
        nonlocal executed
        executed += 1
        return "x" * BIG

    async def send_for_ever(client: RawQmp) -> None:
        nonlocal sent
        while True:
            await client.send(b'{"execute":"va_count"}' * 100)
            sent += 100

    served.commands["va_count"] = va_count
    async with RawQmp(served.path) as client, RawQmp(served.path) as other:
        await client.negotiate()
        await other.negotiate()
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_for_ever, client)
                await trio.testing.wait_all_tasks_blocked(0.1)
                assert executed <= outbox.REPLIES_MAX
                assert sent > executed
                assert "return" in await other.call({"execute": "query-status"})
                nursery.cancel_scope.cancel()


# Events -------------------------------------------------------------------------------------------------


async def test_events_of_qemu_and_ours_go_to_every_client_while_they_work(served: Setup) -> None:
    async def use(client: RawQmp) -> None:
        names: list[str] = []
        for n in range(50):
            await client.send(json.dumps({"execute": "query-name", "id": n}).encode())
            while "event" in (message := await client.receive()):
                names.append(message["event"])
            assert message == {"return": {}, "id": n}
        while names.count("VA_LAST") == 0:
            names.append((await client.receive())["event"])
        seen.append([name for name in names if name != "VA_LAST"])

    seen: list[list[str]] = []
    async with RawQmp(served.path) as first, RawQmp(served.path) as second, RawQmp(served.path) as control:
        for client in (first, second, control):
            await client.negotiate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, first)
            nursery.start_soon(use, second)
            for _ in range(20):
                await control.call({"execute": "stop"})
                await control.call({"execute": "cont"})
            served.bridge.broadcast("VA_LAST", {})
    assert seen == [["STOP", "RESUME"] * 20] * 2


async def test_our_events_have_the_form_of_qemus(served: Setup) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        await client.call({"execute": "va_nothing"})
        await client.send(b'{"execute":"stop"}')
        theirs = await client.receive_event("STOP")
        served.bridge.broadcast("VA_STATE_CHANGE", {"state": "ready"})
        ours = await client.receive_event("VA_STATE_CHANGE")
        assert ours["data"] == {"state": "ready"}
        assert 0 <= ours["timestamp"]["seconds"] - theirs["timestamp"]["seconds"] <= DEADLINE
        assert 0 <= ours["timestamp"]["microseconds"] < 1_000_000


async def test_a_client_that_does_not_read_is_dropped(
    served: Setup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "EVENTS_MAX", 50)
    async with RawQmp(served.path) as stuck, RawQmp(served.path) as reading:
        await stuck.negotiate()
        await reading.negotiate()
        # More than the kernel buffers for the stuck one, and more than its queue takes.
        for n in range(500):
            served.bridge.broadcast("VA_TEST", {"n": n, "padding": "x" * 2000})
            assert (await reading.receive())["data"]["n"] == n
        assert "return" in await reading.call({"execute": "query-status"})
        assert await stuck.at_end()
    dropped = [record for record in caplog.records if "is dropped" in record.message]
    assert [record.levelno for record in dropped] == [logging.WARNING]


async def test_a_client_that_takes_a_big_reply_slowly_is_not_dropped(served: Setup) -> None:
    async with RawQmp(served.path) as client, RawQmp(served.path) as reading:
        await client.negotiate()
        await reading.negotiate()
        await client.send(b'{"execute":"va_big"}')
        await trio.testing.wait_all_tasks_blocked(0.05)
        for n in range(100):
            served.bridge.broadcast("VA_TEST", {"n": n})
            assert (await reading.receive())["data"]["n"] == n
        reply = await client.receive()
        assert len(reply["return"]) == BIG
        assert [(await client.receive())["data"]["n"] for _ in range(100)] == list(range(100))


# File descriptors ---------------------------------------------------------------------------------------


async def test_a_file_descriptor_reaches_qemu(served: Setup, qemu: Qemu, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    async with RawQmp(served.path) as client:
        await client.negotiate()
        with path.open("rb") as file:
            # Once before the command, as qemu.qmp does, and once with it.
            await client.send_fd(file.fileno(), b" ")
            added = (await client.call({"execute": "add-fd"}))["return"]
            assert os.readlink(f"/proc/{qemu.process.pid}/fd/{added['fd']}") == str(path)
            await client.send_fd(file.fileno(), b'{"execute":"getfd","arguments":{"fdname":"x"}}')
            assert await client.receive() == {"return": {}}
        assert await client.call({"execute": "closefd", "arguments": {"fdname": "x"}}) == {"return": {}}
        assert "error" in await client.call({"execute": "closefd", "arguments": {"fdname": "x"}})


async def test_a_file_descriptor_from_qmpclient_reaches_qemu(served: Setup) -> None:
    async def session() -> object:
        client = QMPClient("test")
        await client.connect(str(served.path))
        with socket.socket(socket.AF_UNIX) as sock:
            client.send_fd_scm(sock.fileno())
            await client.execute("getfd", {"fdname": "sock"})
        result = await client.execute("closefd", {"fdname": "sock"})
        await client.disconnect()
        return result

    with trio.fail_after(DEADLINE):
        assert await trio.to_thread.run_sync(lambda: asyncio.run(session())) == {}


async def test_file_descriptors_stay_with_their_commands(served: Setup, qemu: Qemu, tmp_path: Path) -> None:
    async def use(client: RawQmp, name: str) -> None:
        path = tmp_path / name
        path.touch()
        with path.open("rb") as file:
            for _ in range(10):
                await client.send(b'{"execute":"query-name"}')
                await client.send_fd(file.fileno(), b'{"execute":"add-fd"}')
                await client.receive()
                added = (await client.receive())["return"]
                assert os.readlink(f"/proc/{qemu.process.pid}/fd/{added['fd']}") == str(path)

    async with RawQmp(served.path) as first, RawQmp(served.path) as second:
        await first.negotiate()
        await second.negotiate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, first, "first")
            nursery.start_soon(use, second, "second")


async def test_unclaimed_file_descriptors_are_closed(served: Setup) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with RawQmp(served.path) as client:
        await client.negotiate()
        read_end, write_end = os.pipe()
        for _ in range(100):
            await client.send_fd(write_end, b" ")
        await client.call({"execute": "query-name"})
        os.close(write_end)
        # The last one sent is still kept for a getfd to come, one more pushes it out: then all are closed.
        await client.send_fd(read_end, b" ")
        await client.call({"execute": "query-name"})
        assert os.read(read_end, 1) == b""
        os.close(read_end)
    with trio.fail_after(DEADLINE):
        while len(os.listdir("/proc/self/fd")) > before:
            await trio.lowlevel.checkpoint()


# Out of band --------------------------------------------------------------------------------------------


async def test_out_of_band_is_refused_unless_negotiated_and_then_passed(served: Setup) -> None:
    async with RawQmp(served.path) as plain, RawQmp(served.path) as oob:
        await plain.negotiate()
        reply = await plain.call({"exec-oob": "migrate-pause", "id": 1})
        assert reply["error"]["desc"] == "QMP input member 'exec-oob' is unexpected"
        await oob.negotiate("oob")
        reply = await oob.call({"exec-oob": "query-status", "id": 2})
        assert reply == {
            "id": 2,
            "error": {"class": "GenericError", "desc": "The command query-status does not support OOB"},
        }
        reply = await oob.call({"exec-oob": "va_echo", "id": 3})
        assert reply["error"]["desc"] == "The command va_echo does not support OOB"


async def test_an_out_of_band_command_overtakes_the_one_that_is_executed(served: Setup) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate("oob")
        await client.send(b'{"execute":"va_gate","id":1}{"exec-oob":"migrate-pause","id":2}')
        assert (await client.receive())["id"] == 2
        served.gate.open.set()
        assert (await client.receive())["id"] == 1


# Life and death -----------------------------------------------------------------------------------------


async def test_quit_is_answered_and_then_commands_say_that_qemu_is_gone(served: Setup) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        assert await client.call({"execute": "quit", "id": 1}) == {"return": {}, "id": 1}
        assert served.qmp is not None
        with trio.fail_after(DEADLINE):
            await served.qmp.wait_closed()
        reply = await client.call({"execute": "query-status"})
        assert reply["error"] == {
            "class": "GenericError",
            "desc": "broken: demo: QEMU has closed its monitor",
        }
        assert "return" in await client.call({"execute": "va_echo"})


async def test_a_call_in_flight_fails_when_qemu_dies(served: Setup, qemu: Qemu) -> None:
    async with RawQmp(served.path) as client:
        await client.negotiate()
        qemu.process.send_signal(signal.SIGSTOP)
        await client.send(b'{"execute":"query-status"}')
        await client.send(b'{"execute":"query-name"}')
        qemu.process.kill()
        for _ in range(2):
            assert "QEMU has closed its monitor" in (await client.receive())["error"]["desc"]


async def test_without_qmp_our_commands_work_and_those_of_qemu_say_why_not(alone: Setup) -> None:
    async with RawQmp(alone.path) as client:
        assert set(client.greeting["QMP"]["version"]["qemu"]) == {"major", "minor", "micro"}
        assert "virtagent" in client.greeting["QMP"]["version"]["package"]
        await client.negotiate()
        assert "return" in await client.call({"execute": "va_echo"})
        reply = await client.call({"execute": "query-status"})
        assert reply["error"]["class"] == "DeviceNotFound"
        assert "attached without QMP" in reply["error"]["desc"]
        reply = await client.call({"execute": "va_no_such"})
        assert reply["error"] == {
            "class": "CommandNotFound",
            "desc": "The command va_no_such has not been found",
        }
        names = (await client.call({"execute": "query-commands"}))["return"]
        assert {"name": "va_echo"} in names
        assert all(entry["name"].startswith("va_") for entry in names)


# The socket file ----------------------------------------------------------------------------------------


async def test_the_socket_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.qmp"
    async with private_listener(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["x.qmp"]
    assert os.listdir(tmp_path) == []


async def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.qmp"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with private_listener(path), await trio.open_unix_socket(path):
        pass


async def test_a_socket_that_is_served_is_left_alone(alone: Setup) -> None:
    with pytest.raises(CannotServe, match="already served"):
        async with private_listener(alone.path):
            pass
    async with RawQmp(alone.path) as client:
        await client.negotiate()


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.qmp"
    path.write_text("precious")
    with pytest.raises(CannotServe, match="not a socket"):
        async with private_listener(path):
            pass
    assert path.read_text() == "precious"


async def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.qmp"
    async with private_listener(path):
        path.unlink()
        path.touch()
    assert path.exists()


@pytest.mark.parametrize(("name", "error"), [("no/x.qmp", NotThere), ("x" * 100, CannotServe)])
async def test_a_path_that_cannot_be_served_is_told(
    tmp_path: Path, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name):
        async with private_listener(tmp_path / name):
            pass
    assert os.listdir(tmp_path) == []
