"""A client of the bridge that does its worst: bounded memory, few open files, others served quickly."""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.hostilelab import (
    DEADLINE,
    MIB,
    Process,
    Watch,
    in_thread,
    va_guest,
    va_host,
    wait_until,
)
from virtagent_host.bridge.jsonstream import VALUE_MAX
from virtagent_host.bridge.server import CLIENTS_MAX
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir

#: Bytes that one client may make va-host grow by: docs/architecture.md, "What bounds memory".
GROWTH_MAX = 96 * MIB
#: Seconds for another client's `va_ping`, the round trip to the guest included.
PING_MAX = 2.0
#: Seconds of each attack.
ATTACK = 0.4

NEGOTIATE = b'{"execute": "qmp_capabilities"}'


@dataclass
class Lab:
    runtime: RuntimeDir
    host: Process
    #: A good client that was there before.
    good: VmClient
    memory: int
    files: int

    def connect(self) -> socket.socket:
        """A new client, which may not get a greeting any more."""
        sock = socket.socket(socket.AF_UNIX)
        # Blocking, so that it waits while the listener's queue is full.
        sock.connect(str(self.runtime.vm("vm").bridge))
        sock.settimeout(DEADLINE)
        return sock


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        directory = Path(name)
        runtime = RuntimeDir(directory / "run")
        runtime.create()
        with (
            va_guest(directory, directory / "good.sock"),
            va_host(runtime, "vm", directory / "good.sock") as host,
            VmClient.connect(runtime, "vm") as good,
        ):
            good.execute("va_wait", {"until": "ready"}, timeout=DEADLINE)
            yield Lab(runtime, host, good, host.reset_peak(), host.open_files)


def command(name: str, **members: object) -> bytes:
    return json.dumps({"execute": name, **members}).encode()


def endless_string() -> Iterator[bytes]:
    yield b'{"execute": "'
    yield from itertools.repeat(b"x" * 65536)


def endless_nesting() -> Iterator[bytes]:
    yield from itertools.repeat(b'[{"a":' * 10000)


def endless_number() -> Iterator[bytes]:
    yield b'{"id": '
    yield from itertools.repeat(b"9" * 65536)


def numbers_past_all_types() -> Iterator[bytes]:
    numbers = ["1" * 300, "-" + "9" * 309, "1e308", "1e99999", "9" * 5000]
    yield from itertools.repeat(
        b"".join(
            f'{{"execute":"va_wait","arguments":{{"until":"ready","timeout":{n}}}}}'.encode() for n in numbers
        )
    )


def tiny_values() -> Iterator[bytes]:
    yield from itertools.repeat(b'{"id": [' + b"{}," * (VALUE_MAX // 3) + b"1]}\n")


def as_many_values_as_are_allowed() -> Iterator[bytes]:
    yield from itertools.repeat(b'{"execute":"va_status","id": [' + b"{}," * 21000 + b"1]}")


def huge_ids() -> Iterator[bytes]:
    text = "\U0001f600" + "x" * (VALUE_MAX - 200)
    yield from itertools.repeat(json.dumps({"execute": "va_status", "id": text}, ensure_ascii=False).encode())


def flood_of_commands() -> Iterator[bytes]:
    yield from itertools.repeat(command("va_status") * 1000)


def flood_of_calls() -> Iterator[bytes]:
    yield from itertools.repeat(command("va_viewfile", arguments={"filepath": "/etc/passwd"}) * 1000)


def not_utf8() -> Iterator[bytes]:
    yield from itertools.repeat((b'{"execute":"\xc3\x28"}' + b"\xff\xfe\x80'" + b"\\ud800\x00") * 3000)


def not_json() -> Iterator[bytes]:
    yield from itertools.repeat(b"}{][:,'\"\n" * 7000)


ATTACKS: list[Callable[[], Iterator[bytes]]] = [
    endless_string,
    endless_nesting,
    endless_number,
    numbers_past_all_types,
    tiny_values,
    as_many_values_as_are_allowed,
    huge_ids,
    flood_of_commands,
    flood_of_calls,
    not_utf8,
    not_json,
]


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_client_costs_bounded_memory_and_nobody_elses_time(
    lab: Lab, attack: Callable[[], Iterator[bytes]], reads: bool
) -> None:
    with lab.connect() as client:

        def say() -> None:
            with contextlib.suppress(OSError):
                client.sendall(NEGOTIATE)
                for data in attack():
                    client.sendall(data)
            client.close()

        def drain() -> None:
            with contextlib.suppress(OSError):
                while client.recv(65536):
                    pass

        with attacked(lab, attack.__name__, say, *([drain] if reads else [])):
            client.shutdown(socket.SHUT_RDWR)


def test_a_thousand_clients_are_too_many_and_told_so(lab: Lab) -> None:
    clients: list[socket.socket] = []

    def crowd() -> None:
        with contextlib.suppress(OSError):
            for _ in range(1000):
                clients.append(lab.connect())

    with attacked(lab, "a_thousand_clients", crowd):
        wait_until(lambda: len(clients) == 1000, lab.host)
        greetings = [json.loads(client.recv(4096)) for client in clients]
        for client in clients:
            client.close()
    served = [greeting for greeting in greetings if "QMP" in greeting]
    # The good one has a place as well.
    assert len(served) == CLIENTS_MAX - 1
    refused = next(greeting for greeting in greetings if "QMP" not in greeting)
    assert "clients are connected already" in refused["error"]["desc"]


def test_file_descriptors_that_nobody_asked_for_do_not_pile_up(lab: Lab) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 16))]
    with lab.connect() as client:

        def say() -> None:
            with contextlib.suppress(OSError):
                client.sendall(NEGOTIATE)
                for _ in itertools.count():
                    client.sendmsg([command("getfd", arguments={"fdname": "x"}), b" "], rights)

        with attacked(lab, "a_flood_of_descriptors", say):
            # The connection, one that waits for its command, those of commands read ahead, and one piece's.
            assert lab.host.open_files < lab.files + 32
            client.shutdown(socket.SHUT_RDWR)
    os.close(null)


def test_clients_that_leave_in_the_middle_of_a_command_leave_nothing(lab: Lab) -> None:
    wait = command("va_wait", arguments={"until": "frozen", "timeout": 1000})

    def come_and_go() -> None:
        ending = time.monotonic() + ATTACK
        while time.monotonic() < ending:
            with lab.connect() as client, contextlib.suppress(OSError):
                client.sendall(NEGOTIATE + wait + b'{"execute": "va_st')

    with attacked(lab, "coming_and_going", come_and_go):
        pass
    assert lab.good.execute("va_status", timeout=DEADLINE)["figures"]["client-jobs"]["in-flight"] == 0


@contextlib.contextmanager
def attacked(lab: Lab, name: str, *attackers: Callable[[], None]) -> Iterator[None]:
    """Run attackers for a while and hold va-host to its promises; the block ends them."""
    lab.host.reset_peak()
    ping = Watch()
    with in_thread(*attackers):
        ending = time.monotonic() + ATTACK
        while time.monotonic() < ending:
            ping.ask(lab.good, "va_ping")
        yield
    growth = lab.host.peak - lab.memory
    print(f"HOSTILE {name}: growth {growth / MIB:.1f} MiB, va_ping {ping.longest:.3f} s of {ping.asked}")
    assert growth < GROWTH_MAX
    assert ping.longest < PING_MAX
    assert not ping.errors
    assert "Traceback" not in lab.host.log
    wait_until(lambda: lab.host.open_files == lab.files, lab.host)
