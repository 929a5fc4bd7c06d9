"""The parts that calls of users' sessions are passed on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.linkpair import make_link
from virtagent_guest.local.caller import Caller
from virtagent_guest.session.agent import claims
from virtagent_guest.sessions.logind import session_of
from virtagent_guest.sessions.request import parse_request
from virtagent_guest.sessions.table import (
    CLAIM_MAX,
    SESSIONS_MAX,
    SESSIONS_OF_UID,
    SessionTable,
    UserSession,
)
from virtagent_guest.sessions.turns import Turns
from virtagent_host.sessions import _outcome
from virtagent_protocol.errors import (
    Fault,
    RemoteProtocolError,
)
from virtagent_protocol.session import Role
from virtagent_protocol.values import Struct, Value


async def test_an_answer_that_does_not_say_who_speaks_is_an_error() -> None:
    with pytest.raises(RemoteProtocolError, match="does not say who speaks"):
        _outcome(b"\2<methodResponse/>", "session user-1")
    with pytest.raises(RemoteProtocolError, match=r"^session user-1: "):
        _outcome(b"\0nonsense", "session user-1")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"method": "t.echo", "answer": 1}, "'session' must be string"),
        ({"session": "1", "method": "t.echo"}, "'answer' must be int"),
        ({"session": "1", "method": "t.e", "answer": 1, "deadline": 0.0}, "deadline must be more than 0"),
        ({"session": "1", "method": "t.e", "answer": 1, "streams": [[]]}, "array of 1 to 4"),
        ({"session": "1", "method": "t.e", "answer": 1, "streams": [[0]]}, r"no number at \[0\]"),
        ({"session": "1", "method": "t.e", "answer": 1, "params": [True], "streams": [[0]]}, "no number"),
        ({"session": "1", "method": "t.e", "answer": 1, "params": [7], "streams": [[-1]]}, "no number"),
        ({"session": "1", "method": "t.e", "answer": 1, "params": [7], "streams": [[0], [0]]}, "different"),
        ({"session": "1", "method": "system.multicall", "answer": 1}, "cannot be called in a session"),
        ({"session": "1", "method": "va.session", "answer": 1}, "cannot be called in a session"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_name(request_: Struct, words: str) -> None:
    with pytest.raises(Fault, match=words):
        parse_request(request_)


def test_numbers_of_streams_are_replaced_in_their_places_alone() -> None:
    params: list[Value] = [{"io": 5, "id": 5, "more": [5, {"status": 7}]}, 5]
    request = parse_request(
        {
            "session": "1",
            "method": "t.e",
            "answer": 9,
            "params": params,
            "streams": [[0, "io"], [0, "more", 1, "status"]],
        }
    )
    assert request.numbers() == [5, 7]
    assert request.with_streams([2, 4]) == [{"io": 2, "id": 5, "more": [5, {"status": 4}]}, 5]
    assert params[0] == {"io": 5, "id": 5, "more": [5, {"status": 7}]}


async def test_turns_go_round_whoever_has_the_most_that_wait(autojump_clock: trio.testing.MockClock) -> None:
    turns = Turns()
    order: list[int] = []

    async def work(key: int) -> None:
        async with turns.turn(key):
            order.append(key)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, 0)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(100):
            nursery.start_soon(work, 1)
        await trio.testing.wait_all_tasks_blocked()
        for key in (2, 3, 3):
            nursery.start_soon(work, key)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as gone:
            gone.start_soon(work, 4)
            await trio.testing.wait_all_tasks_blocked()
            gone.cancel_scope.cancel()
    assert order.count(1) == 100
    # Each key waits for one turn of every other at most, whatever stands before it.
    assert set(order[1:4]) == {1, 2, 3}
    assert order.index(3, order.index(3) + 1) <= 6
    assert 4 not in order


@pytest.mark.parametrize(
    ("cgroup", "sessionid", "session"),
    [
        ("0::/user.slice/user-1000.slice/session-c2.scope\n", "7", "c2"),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/va-guest-session.service\n",
            "7",
            "user",
        ),
        ("1:name=systemd:/user.slice/user-0.slice/session-3.scope\n0::/\n", "", "3"),
        # Below what is the user's own, anything may be called anything.
        ("0::/x/user.slice/user-0.slice/session-3.scope\n", "4294967295", "none"),
        ("0::/init.scope\n", "12", "12"),
        ("0::/init.scope\n", "", "none"),
    ],
)
def test_the_session_is_the_kernels_word(tmp_path: Path, cgroup: str, sessionid: str, session: str) -> None:
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "cgroup").write_text(cgroup)
    (tmp_path / "4" / "sessionid").write_text(sessionid)
    assert session_of(4, tmp_path) == session
    assert session_of(5, tmp_path) == "none"


def test_a_session_agent_claims_what_its_environment_says_if_that_can_be_shown() -> None:
    environ = {"XDG_SESSION_TYPE": "wayland", "WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ":0"}
    assert claims(environ) == {"type": "wayland", "display": "wayland-0"}
    assert claims({"DISPLAY": ":1", "XDG_CURRENT_DESKTOP": "a\nb"}) == {"display": ":1"}
    assert claims({}) == {}


def test_each_user_has_some_sessions_and_nobody_locks_another_one_out() -> None:
    table = SessionTable()
    link = make_link(Role.HOST)

    def open_for(uid: int) -> UserSession:
        return table.open(
            Caller(pid=0, uid=uid, gid=uid, user=str(uid)), link, "x" * 1000, {"type": "y" * 1000}
        )

    first = [open_for(uid) for uid in range(8) for _ in range(SESSIONS_OF_UID)]
    assert len(table) == SESSIONS_MAX
    assert (len(first[0].agent), len(first[0].claimed["type"])) == (CLAIM_MAX, CLAIM_MAX)
    with pytest.raises(Fault, match="uid 7 has 8 session agents already"):
        open_for(7)
    other = open_for(100)
    with pytest.raises(Fault, match="there are 65 session agents"):
        open_for(100)
    table.close(other)
    # A number is never used again.
    assert open_for(100).id == "none-66"
