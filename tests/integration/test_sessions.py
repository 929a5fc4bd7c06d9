"""Agents of users' sessions behind a va-guest, asked by a va-host: all real processes, of several users."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hostilelab import DEADLINE, MIB, Watch
from tests.integration.sessionlab import NAME, UID, Lab, needs_root, session_lab
from virtagent_guest.session.agent import check_owner
from virtagent_host.frontend.client import BridgeError, VmClient
from virtagent_protocol.errors import FailureKind, Forbidden, VirtagentError

#: Sessions that flood, each of another user; and how many of them do so with the largest documents there are.
FLOODING, CRUSHING = 50, 10
#: Seconds of the flood that is watched; and until every session must have had its turn, on a busy machine.
FLOOD_TIME, TURN_MAX = 6.0, 90.0
#: Seconds for a ping of the guest's agent meanwhile: what docs/sessions.md states.
PING_MAX = 2.0
#: Bytes that all that may make the agent grow by.
GROWTH_MAX = 128 * MIB


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with session_lab(tmp_path) as lab:
        yield lab


def call(client: VmClient, command: str, **arguments: Any) -> Any:
    return client.execute(command, arguments, timeout=DEADLINE)


@contextlib.contextmanager
def failing(kind: FailureKind, words: str) -> Iterator[None]:
    with pytest.raises(BridgeError, match=words) as caught:
        yield
    assert caught.value.kind is kind


@needs_root
def test_a_user_s_session_is_asked_by_uid_or_id(lab: Lab, tmp_path: Path) -> None:
    lab.session_agent(UID, XDG_SESSION_TYPE="x11", DISPLAY=":7")
    (session,) = lab.wait_for_sessions(1)
    assert (session["uid"], session["user"]) == (UID, str(UID))
    assert session["claimed"]["type"] == "x11"
    assert session["claimed"]["display"] == ":7"
    listed = lab.run("sessions", NAME)
    assert listed.stdout.decode().split()[:2] == [session["id"], str(UID)]

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        done = lab.run(*arguments, stdin=stdin)
        return done.returncode, done.stdout, done.stderr

    for name in (str(UID), session["id"]):
        assert run("exec", NAME, "--session", name, "--", "id", "-u") == (0, f"{UID}\n".encode(), b"")
    # Its environment is that of the session.
    assert run("exec", NAME, "--session", str(UID), "--shell", "--", "echo $DISPLAY")[1] == b":7\n"
    payload = bytes(range(256)) * 4000
    script = "cat; echo err >&2; exit 3"
    assert run("exec", NAME, "--session", str(UID), "--shell", "--", script, stdin=payload) == (
        3,
        payload,
        b"err\n",
    )
    assert run("exec", NAME, "--session", str(UID), "-t", "--", "id", "-u")[1] == f"{UID}\r\n".encode()

    status, _, said = run("viewfile", NAME, "--session", str(UID), "/etc/shadow")
    assert (status, said) == (
        1,
        f"va-host: refused: session {session['id']}: open failed: /etc/shadow: "
        "Permission denied (fault 6)\n".encode(),
    )
    assert run("viewfile", NAME, "/etc/shadow")[0] == 0

    (tmp_path / "up").write_bytes(payload)
    public = Path(f"/tmp/va-session-{os.getpid()}")
    try:
        assert run("mkdir", "--session", str(UID), f"{NAME}:{public}")[0] == 0
        assert run("cp", "--session", str(UID), str(tmp_path / "up"), f"{NAME}:{public}/file") == (
            0,
            b"",
            b"",
        )
        assert (public / "file").stat().st_uid == UID
        assert run("cp", "--session", str(UID), f"{NAME}:{public}/file", str(tmp_path / "down"))[0] == 0
        assert (tmp_path / "down").read_bytes() == payload
        assert b"file" in run("ls", "--session", str(UID), f"{NAME}:{public}")[1]
        assert run("rm", "-r", "--session", str(UID), f"{NAME}:{public}")[0] == 0
    finally:
        subprocess.run(["rm", "-rf", str(public)], check=True)
    assert not public.exists()


@needs_root
def test_jobs_of_two_agents_are_told_apart_by_one_client(lab: Lab) -> None:
    lab.session_agent(UID)
    lab.wait_for_sessions(1)
    with lab.client() as client:
        for session in ({}, {"session": UID}):
            client.send_fd("va_out", 1)
            assert (
                call(client, "va_exec", argv=["sleep", "1000"], **{"stdout-fd": "va_out"}, **session)["id"]
                == 1
            )
        call(client, "va_job_signal", id=1, signal="TERM", session=UID)
        assert call(client, "va_exec_wait", id=1, session=UID)["signal"] == signal.SIGTERM
        (ended,) = [event["data"] for event in client.pending_events() if event["event"] == "VA_JOB_ENDED"]
        assert ended["session"] == UID
        assert len(call(client, "va_jobs")["jobs"]) == 1
        assert call(client, "va_jobs", session=UID)["jobs"] == []
        with failing(FailureKind.REFUSED, "Parameter 'session' is unexpected"):
            call(client, "va_shutdown", shutdown_mode="halt", session=UID)


def test_a_session_of_our_own_needs_no_root(lab: Lab) -> None:
    lab.session_agent(os.geteuid())
    lab.wait_for_sessions(1)
    done = lab.run("exec", NAME, "--session", str(os.geteuid()), "--", "id", "-u")
    assert (done.returncode, done.stdout) == (0, f"{os.geteuid()}\n".encode())


@needs_root
def test_nobody_opens_a_session_for_somebody_else(lab: Lab) -> None:
    thief = lab.play(UID, "steal")
    assert thief.stdout is not None
    refused_uid, refused_user, refused_both, opened, again, twice = json.loads(thief.stdout.readline())
    assert refused_uid.startswith("forbidden: a session is that of the user who connects: uid is 54321")
    assert refused_user.startswith("forbidden: a session is that of the user who connects: user is '54321'")
    assert refused_both == refused_user
    for session in (opened, again):
        assert (session["uid"], session["user"]) == (UID, str(UID))
    assert opened["id"] != again["id"]
    assert twice.startswith(f"refused: this connection is session {again['id']}")
    assert lab.wait_for_sessions(0) == []


@needs_root
def test_a_session_agent_does_not_talk_to_a_socket_of_somebody_else(tmp_path: Path) -> None:
    socket = tmp_path / "guest.sock"
    check_owner(str(socket))  # for `connect` to say
    socket.touch()
    check_owner(str(socket))
    os.chown(socket, UID, UID)
    with pytest.raises(Forbidden, match="belongs to uid 54321, not to root"):
        check_owner(str(socket))


def test_a_policy_holds_in_sessions_as_well(tmp_path: Path) -> None:
    own = str(os.geteuid())
    with session_lab(tmp_path, '[policy]\nblock-rpcs = ["va.exec"]\n') as lab:
        lab.session_agent(os.geteuid())
        lab.wait_for_sessions(1)
        with lab.client() as client:
            with failing(FailureKind.FORBIDDEN, "va.exec in a session: blocked .*'block-rpcs'"):
                call(client, "va_exec", argv=["id"], session=own)
            assert call(client, "va_viewfile", filepath="/etc/hostname", session=own)["count"] > 0
    assert "va.exec in a session: blocked by the guest's policy" in lab.guest.log


@needs_root
def test_a_session_agent_that_is_killed_in_a_call_breaks_that_call_alone(lab: Lab) -> None:
    victim, other = lab.session_agent(UID), lab.session_agent(UID + 1)
    lab.wait_for_sessions(2)
    with lab.client() as client, lab.client() as beside:
        killer = threading.Timer(0.5, victim.kill)
        killer.start()
        with failing(FailureKind.BROKEN, "lost"):
            call(client, "va_exec", argv=["sleep", "1000"], session=UID)
        killer.join()
        assert call(beside, "va_ping", session=UID + 1)["status"] == "success"
        with failing(FailureKind.NOT_THERE, "no session '54321'; it has .*uid 54322"):
            call(beside, "va_ping", session=UID)
    assert other.poll() is None


@needs_root
def test_a_session_agent_that_stands_still_holds_up_nobody_else(lab: Lab) -> None:
    stuck = lab.session_agent(UID)
    lab.session_agent(UID + 1)
    lab.wait_for_sessions(2)
    stuck.send_signal(signal.SIGSTOP)
    clients = [lab.client() for _ in range(30)]
    try:
        outcomes: list[str] = []

        def ask(client: VmClient) -> None:
            try:
                client.execute("va_ping", {"session": UID, "timeout": 4}, timeout=DEADLINE)
            except BridgeError as error:
                outcomes.append(error.kind.value)

        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        with lab.client() as client:
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                begin = time.monotonic()
                call(client, "va_ping")
                call(client, "va_ping", session=UID + 1)
                call(client, "va_exec", argv=["true"])
                assert time.monotonic() - begin < PING_MAX
        for thread in threads:
            thread.join(DEADLINE)
        # Eight wait for an answer until their time is over; there is no room for more.
        assert sorted(outcomes) == ["not ready"] * 22 + ["timed out"] * 8
        stuck.send_signal(signal.SIGCONT)
        assert call(clients[0], "va_ping", session=UID)["status"] == "success"
    finally:
        for client in clients:
            client.close()


def test_a_session_agent_comes_back_after_the_agent_was_restarted(tmp_path: Path) -> None:
    with session_lab(tmp_path) as lab:
        lab.session_agent(os.geteuid())
        lab.wait_for_sessions(1)
        lab.restart_guest()
        with lab.client() as client:
            call(client, "va_wait", until="ready", timeout=DEADLINE)
        lab.wait_for_sessions(1)
        assert lab.run("ping", NAME, "--session", str(os.geteuid())).returncode == 0


@needs_root
def test_fifty_sessions_that_flood_leave_the_agent_its_turn(lab: Lab) -> None:
    """All call without a pause; most answer as fast as they can, and a third of those write without end."""
    for number in range(FLOODING):
        word = "flood" if number < FLOODING - CRUSHING else "crush"
        # In a guest, users' slices and the system's have the same weight, however many there are.
        os.setpriority(os.PRIO_PROCESS, lab.play(UID + number, word).pid, 19)
    lab.wait_for_sessions(FLOODING)
    lab.let_go()
    over = threading.Event()
    begin = lab.guest.reset_peak()
    asked = range(FLOODING - CRUSHING)
    answered = [0] * len(asked)
    errors: list[str] = []

    def read_all(number: int) -> None:
        with lab.client() as client:
            while not over.is_set():
                try:
                    client.execute(
                        "va_viewfile",
                        {"filepath": "/x", "format": "base64", "session": UID + number, "timeout": TURN_MAX},
                        timeout=TURN_MAX,
                    )
                    answered[number] += 1
                except VirtagentError as error:
                    errors.append(str(error))

    with contextlib.ExitStack() as block:
        null = os.open(os.devnull, os.O_RDWR)
        block.callback(os.close, null)
        for number in asked[::3]:
            client = block.enter_context(lab.client())
            client.send_fd("va_out", null)
            call(client, "va_exec", argv=["x"], session=UID + number, **{"stdout-fd": "va_out"})
        threads = [threading.Thread(target=read_all, args=(number,)) for number in asked]
        for thread in threads:
            thread.start()
        watch = Watch()
        try:
            with lab.client() as client:
                started = time.monotonic()
                while time.monotonic() < started + FLOOD_TIME or min(answered) == 0:
                    watch.ask(client, "va_ping")
                    assert time.monotonic() < started + TURN_MAX, (answered, errors[-1:])
        finally:
            over.set()
            for thread in threads:
                thread.join(TURN_MAX)
    grown, seconds = lab.guest.peak - begin, time.monotonic() - started
    print(
        f"\n{watch.asked} pings in {seconds:.1f} s, the longest {1000 * watch.longest:.0f} ms; "
        f"{sum(answered)} answers, {min(answered)} to {max(answered)} of each; grown by {grown >> 20} MiB",
        file=sys.stderr,
    )
    assert watch.errors == []
    assert watch.longest < PING_MAX
    assert grown < GROWTH_MAX
    # Every session has its turn.
    assert min(answered) > 0
    assert lab.guest.alive
