"""A host that does its worst, against a real va-guest: the agent lives, stays small, serves the next host.

A host owns its guest's memory anyway. But an agent that a broken host can kill or bloat is one that fails.
"""

from __future__ import annotations

import itertools
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration import attacks
from tests.integration.attacks import Attack
from tests.integration.hostilelab import (
    CONTROL,
    DEADLINE,
    MIB,
    Peer,
    Process,
    in_thread,
    in_time,
    va_guest,
    va_host,
    wait_until,
)
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol import xmlrpc
from virtagent_protocol.limits import BODY_MAX
from virtagent_protocol.messages import Request, encode
from virtagent_protocol.session import Role
from virtagent_protocol.values import Value

#: Bytes that a host may make the agent grow by: docs/architecture.md, "What bounds memory".
GROWTH_MAX = 128 * MIB
#: Seconds of each attack.
ATTACK = 0.6
#: What it tries besides; the last one ends the session.
ATTACKS: list[Attack] = [
    attacks.attributes_namespaces_and_comments,
    attacks.everything_that_may_wait,
    attacks.names_that_are_megabytes_long,
    attacks.nonsense,
    attacks.hellos_that_make_no_sense,
]


@dataclass
class Lab:
    directory: Path
    agent: Process
    memory: int

    @property
    def channel(self) -> Path:
        return self.directory / "agent.sock"

    @contextmanager
    def host(self) -> Iterator[Peer]:
        """The hostile host, connected to the agent."""
        with socket.socket(socket.AF_UNIX) as sock:
            wait_until(lambda: sock.connect_ex(str(self.channel)) == 0, self.agent)
            yield Peer(sock, Role.HOST)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        directory = Path(name)
        (directory / "file").write_bytes(b"\xff" * (BODY_MAX // 2))
        with va_guest(directory, directory / "agent.sock") as agent:
            wait_until(lambda: (directory / "agent.sock").exists(), agent)
            yield Lab(directory, agent, agent.reset_peak())


def files_that_nobody_reads(path: Path) -> Attack:
    """Return an attack that asks for a big file, one by one and by the thousand."""

    def attack(session: str, role: Role) -> Iterator[bytes]:
        one: dict[str, Value] = {"methodName": "va.getfile", "params": [str(path)]}
        calls = [xmlrpc.encode_call("va.getfile", [str(path)])] * 20
        calls += [xmlrpc.encode_call("system.multicall", [[one] * 1000])] * 20
        for start in range(0, 10**9, len(calls)):
            requests = (Request(f"f-{start + n}", body, session) for n, body in enumerate(calls))
            yield b"".join(map(encode, requests))

    return attack


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
def test_a_host_costs_the_agent_bounded_memory_and_not_its_life(lab: Lab, reads: bool) -> None:
    # One connection for all: an agent that loses one after the other waits longer each time.
    with lab.host() as host:
        session = host.greet("00000000000000a1")
        said = itertools.chain.from_iterable(
            in_time(attack(session, Role.HOST), ATTACK)
            for attack in [files_that_nobody_reads(lab.directory / "file"), *ATTACKS]
        )
        with in_thread(lambda: host.say_all(said), *([host.drain] if reads else [])):
            pass
    growth = lab.agent.peak - lab.memory
    print(f"HOSTILE host {'read' if reads else 'unread'}: growth {growth / MIB:.1f} MiB")
    assert growth < GROWTH_MAX
    assert lab.agent.alive
    assert "Traceback" not in lab.agent.log
    assert not CONTROL.search(lab.agent.log)


def test_after_all_that_a_good_host_is_served(lab: Lab) -> None:
    runtime = RuntimeDir(lab.directory / "run")
    runtime.create()
    with va_host(runtime, "good", lab.channel), VmClient.connect(runtime, "good") as client:
        client.execute("va_wait", {"until": "ready"}, timeout=DEADLINE)
        assert client.execute("va_ping", timeout=DEADLINE)["status"] == "success"
