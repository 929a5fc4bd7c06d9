"""A guest that does its worst, against a real va-host: bounded memory, a quick bridge, a short and clean log.

One va-host takes all the attacks, one after the other, so that what they leave behind adds up. Its neighbour
serves a good guest all the while.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.attacks import QUESTIONS, TALK, Attack, a_flood_of_requests, cut_short_messages
from tests.integration.clilab import run_on_terminal
from tests.integration.clilab import va_host as va_host_command
from tests.integration.hostilelab import (
    CONTROL,
    DEADLINE,
    ESCAPES,
    MIB,
    PYTHON_PATH,
    Peer,
    Process,
    Watch,
    in_thread,
    listening,
    speaking,
    va_guest,
    va_host,
    wait_until,
)
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol import logs, xmlrpc
from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.messages import Response, encode
from virtagent_protocol.session import Role
from virtagent_protocol.values import Value

#: Bytes that a guest may make its va-host grow by: docs/architecture.md, "What bounds memory".
GROWTH_MAX = 96 * MIB
#: Seconds for the attacked VM's own bridge to answer `va_status`.
STATUS_MAX = 3.0
#: Seconds for another VM's `va_ping`. It has a process of its own: only the machine is shared.
PING_MAX = 2.0
#: Seconds of each attack.
ATTACK = 0.6
#: Bytes of log for each line that the rate limit lets pass: ordinary lines are a hundred long.
LOG_LINE = 300
#: The colours that the CLI itself prints.
OWN_COLOUR = re.compile("\x1b\\[[0-9;]*m")


@dataclass
class Lab:
    """The attacked va-host and its neighbour."""

    directory: Path
    runtime: RuntimeDir
    listener: socket.socket
    victim: Process
    neighbour: VmClient
    begin: float
    #: Resident memory of the victim before the first attack.
    memory: int

    @property
    def channel(self) -> Path:
        return self.directory / "victim.sock"

    @contextmanager
    def guest(self) -> Iterator[Peer]:
        """The hostile guest: the victim has connected to it."""
        sock, _ = self.listener.accept()
        peer = Peer(sock, Role.GUEST)
        try:
            yield peer
        finally:
            peer.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        directory = Path(name)
        runtime = RuntimeDir(directory / "run")
        runtime.create()
        with (
            va_guest(directory, directory / "good.sock") as good,
            va_host(runtime, "neighbour", directory / "good.sock"),
            listening(directory / "victim.sock") as listener,
            va_host(runtime, "victim", directory / "victim.sock") as victim,
            VmClient.connect(runtime, "neighbour") as neighbour,
        ):
            neighbour.execute("va_wait", {"until": "ready"}, timeout=None)
            assert good.alive
            memory = victim.reset_peak()
            yield Lab(directory, runtime, listener, victim, neighbour, time.monotonic(), memory)


# --- What its host makes of it ---------------------------------------------------------------------------


def test_nothing_that_a_guest_says_reaches_a_terminal_or_the_log_raw(lab: Lab) -> None:
    with lab.guest() as guest:
        session = guest.greet(agent=ESCAPES)

        def answer() -> None:
            capabilities: Value = dict.fromkeys(("agent", "version", "protocol"), ESCAPES)
            assert isinstance(capabilities, dict)
            capabilities["methods"] = [ESCAPES, "va.ping", "va.getdmesg"]
            replies = {
                "va.capabilities": xmlrpc.encode_result(capabilities),
                "va.getdmesg": xmlrpc.encode_result(ESCAPES.encode()),
                "va.ping": xmlrpc.encode_fault(8, ESCAPES),
            }
            for request in guest.requests():
                name, _ = xmlrpc.decode_call(request.body)
                if request.session == session:
                    guest.say(encode(Response(request.tag, replies[name], session)))

        with in_thread(answer):
            for command in ("status", "capabilities", "ping", "viewdmesg"):
                arguments = va_host_command("--runtime-dir", str(lab.runtime.path), command, "victim")
                environment = {**os.environ, "PYTHONPATH": PYTHON_PATH, "TERM": "xterm"}
                seen, _ = run_on_terminal(arguments, environment, [])
                assert "owned" in seen
                assert not CONTROL.search(OWN_COLOUR.sub("", seen).replace("\t", " ")), (command, seen)
            guest.hang_up()
    check_log(lab)


CASES = [(attack, True) for attack in TALK + QUESTIONS] + [(attack, False) for attack in QUESTIONS]


@pytest.mark.parametrize(
    ("attack", "reads"),
    CASES,
    ids=[f"{attack.__name__}{'' if reads else '-unread'}" for attack, reads in CASES],
)
def test_a_guest_costs_its_host_bounded_memory_and_nobody_elses_time(
    lab: Lab, attack: Attack, reads: bool
) -> None:
    lab.victim.reset_peak()
    status, ping = Watch(), Watch()
    with lab.guest() as guest, speaking(guest, attack(guest.greet(), Role.GUEST), reads=reads):
        ending = time.monotonic() + ATTACK
        while time.monotonic() < ending:
            # A new client each time: connecting is part of what must be quick.
            begin = time.monotonic()
            with VmClient.connect(lab.runtime, "victim") as client:
                client.execute("va_status", timeout=STATUS_MAX)
            status.note(time.monotonic() - begin)
            ping.ask(lab.neighbour, "va_ping")
    growth = lab.victim.peak - lab.memory
    print(
        f"HOSTILE {attack.__name__} {'reading' if reads else 'not-reading'}: growth {growth / MIB:.1f} MiB, "
        f"va_status {status.longest:.3f} s of {status.asked}, neighbour {ping.longest:.3f} s"
    )
    assert growth < GROWTH_MAX
    assert status.longest < STATUS_MAX
    assert ping.longest < PING_MAX
    assert not ping.errors
    check_log(lab)


def check_log(lab: Lab) -> None:
    log = lab.victim.log
    assert not CONTROL.search(log)
    assert "Traceback" not in log
    # One bucket for warnings and one for the rest.
    lines = 2 * (logs.BURST + logs.RATE * (time.monotonic() - lab.begin))
    assert lab.victim.log_size < LOG_LINE * lines


def test_a_flood_of_calls_is_thinned_out_in_the_log_and_what_was_left_out_is_told(lab: Lab) -> None:
    with lab.guest() as guest, speaking(guest, a_flood_of_requests(guest.greet(), Role.GUEST), reads=True):
        wait_until(lambda: "lines left out" in lab.victim.log, lab.victim)
    check_log(lab)


def test_after_an_attack_a_good_guest_is_met_by_itself(lab: Lab) -> None:
    with (
        lab.guest() as guest,
        speaking(guest, cut_short_messages("", Role.GUEST), reads=False),
        VmClient.connect(lab.runtime, "victim") as client,
    ):
        wait_until(lambda: "cut-short" in drops(client), lab.victim)
        # Nobody listens behind it any more.
        lab.listener.close()
        lab.channel.unlink()
    with va_guest(lab.directory, lab.channel) as good, VmClient.connect(lab.runtime, "victim") as client:

        def answers() -> bool:
            # The last bad session may yet stand: a call in it fails, as it should.
            with suppress(VirtagentError):
                client.execute("va_ping", timeout=DEADLINE)
                return True
            return False

        wait_until(answers, good)
    check_log(lab)


def drops(client: VmClient) -> dict[str, int]:
    """Return how many messages were dropped, by cause."""
    found: dict[str, int] = client.execute("va_status", timeout=DEADLINE)["figures"]["drops"]
    return found
