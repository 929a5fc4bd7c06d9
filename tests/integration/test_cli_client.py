"""The bridge's client by itself, against a script of what a server sends."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtagent_host.frontend.client import BridgeError, ConnectionEnded, VmClient
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol.errors import CallTimeout, FailureKind, Forbidden, LinkBroken, NotThere

HELLO = [b'{"QMP": {"version": {}, "capabilities": []}}\r\n', b'{"return": {}, "id": 1}\r\n']
EVENT = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n'
DEADLINE = 5.0


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeDir:
    return RuntimeDir(tmp_path)


@contextmanager
def server(runtime: RuntimeDir, *pieces: bytes, end: bool = False) -> Iterator[None]:
    """Send these pieces to one client, a packet each; then close, or stay silent until the block ends."""
    over = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for piece in pieces:
                connection.sendall(piece)
            if end:
                connection.shutdown(socket.SHUT_WR)
            over.wait(DEADLINE)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.vm("demo").bridge))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def test_answers_are_found_between_events_and_however_they_are_cut(runtime: RuntimeDir) -> None:
    stream = b"".join([*HELLO, EVENT, b'{"return": 7, "id": 2}\r\n', EVENT])
    with (
        server(runtime, *[stream[i : i + 1] for i in range(len(stream))], end=True),
        VmClient.connect(runtime, "demo") as client,
    ):
        assert client.execute("x", timeout=DEADLINE) == 7
        assert [event["event"] for event in client.events(timeout=DEADLINE)] == ["STOP", "STOP"]


@pytest.mark.parametrize(
    ("desc", "kind", "message"),
    [
        ("not ready: no agent has opened the port", FailureKind.NOT_READY, "no agent has opened the port"),
        ("timed out: late: very", FailureKind.TIMED_OUT, "late: very"),
        ("Device 'not there' not found", FailureKind.REFUSED, "Device 'not there' not found"),
        ("Invalid JSON: x", FailureKind.REFUSED, "Invalid JSON: x"),
    ],
)
def test_an_errors_first_word_says_its_kind(
    runtime: RuntimeDir, desc: str, kind: FailureKind, message: str
) -> None:
    error = f'{{"error": {{"class": "GenericError", "desc": "{desc}"}}, "id": 2}}\r\n'.encode()
    with server(runtime, *HELLO, error), VmClient.connect(runtime, "demo") as client:
        with pytest.raises(BridgeError) as caught:
            client.execute("x", timeout=DEADLINE)
        assert (caught.value.kind, str(caught.value)) == (kind, message)


def test_an_answer_that_does_not_come_is_a_timeout(runtime: RuntimeDir) -> None:
    with (
        server(runtime, *HELLO, EVENT),
        VmClient.connect(runtime, "demo") as client,
        pytest.raises(CallTimeout, match=r"x was not answered within 0.05 s by 'demo'"),
    ):
        client.execute("x", timeout=0.05)


def test_a_server_that_leaves_before_it_answers_has_ended(runtime: RuntimeDir) -> None:
    with (
        server(runtime, *HELLO, end=True),
        VmClient.connect(runtime, "demo") as client,
        pytest.raises(ConnectionEnded, match="detached, or QEMU ended"),
    ):
        client.execute("x", timeout=DEADLINE)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH\r\n", b"[1]\r\n", b'{"return": {}}\r\n', b"\xff\r\n"])
def test_what_is_no_qmp_server_is_said_to_be_none(runtime: RuntimeDir, greeting: bytes) -> None:
    with server(runtime, greeting), pytest.raises(LinkBroken, match=r"not QMP|not a QMP server"):
        VmClient.connect(runtime, "demo")


def test_a_server_that_never_greets_is_given_up(runtime: RuntimeDir) -> None:
    with server(runtime), pytest.raises(CallTimeout, match="is it stopped"):
        VmClient.connect(runtime, "demo", timeout=0.05)


def test_a_socket_left_by_a_killed_service_is_not_there(runtime: RuntimeDir) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime.vm("demo").bridge))
    with pytest.raises(NotThere, match="no VM named 'demo' is attached, nor any other"):
        VmClient.connect(runtime, "demo")


def test_another_users_socket_is_forbidden(runtime: RuntimeDir) -> None:
    was_root = os.geteuid() == 0
    runtime.path.chmod(0)
    try:
        if was_root:
            os.seteuid(65534)
        with pytest.raises(Forbidden, match="as the user who runs va-host"):
            VmClient.connect(runtime, "demo")
        with pytest.raises(Forbidden, match="the right user"):
            runtime.attached()
    finally:
        if was_root:
            os.seteuid(0)
        runtime.path.chmod(0o700)
