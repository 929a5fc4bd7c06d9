"""The agent's local socket: who may connect, how many, and what a client costs."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from virtagent_guest.local import server
from virtagent_guest.local.caller import Caller
from virtagent_guest.local.client import Agent, connect
from virtagent_guest.local.server import LocalClient, LocalServer, serve_local
from virtagent_guest.local.turns import Turnstile
from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import (
    CallTimeout,
    FaultCode,
    LinkBroken,
    LocalProtocolError,
    NotReady,
    NotThere,
    RemoteFault,
)
from virtagent_protocol.messages import Request, encode
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Hello, Role
from virtagent_protocol.values import Value

#: Seconds for anything here.
DEADLINE = 30.0


def topic(client: LocalClient, gone: list[int] | None = None) -> Registry:
    registry = Registry()
    if gone is not None:
        client.at_end.append(lambda: gone.append(client.number))

    @registry.method("test.who")
    async def who(call: Call) -> dict[str, Value]:
        """Who calls."""
        return client.caller.to_value()

    @registry.method("test.wait")
    async def wait(call: Call) -> None:
        """Answer never."""
        await trio.sleep_forever()

    @registry.method("test.back")
    async def back(call: Call) -> Value:
        """Call the client."""
        return await client.link.call("test.double", 21)

    return registry


@asynccontextmanager
async def serving(path: Path, gone: list[int] | None = None) -> AsyncIterator[str]:
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            made = await nursery.start(serve_local, str(path), [partial(topic, gone=gone)])
            assert made
            yield str(path)
            nursery.cancel_scope.cancel()


async def blocking(function: Callable[[], object]) -> object:
    return await trio.to_thread.run_sync(function)


async def test_anybody_may_connect_and_is_who_the_kernel_says(tmp_path: Path) -> None:
    path = tmp_path / "new" / "guest.sock"
    async with serving(path) as name:
        assert path.stat().st_mode & 0o777 == 0o666
        assert path.parent.stat().st_mode & 0o777 == 0o755

        def ask() -> object:
            with Agent(name) as agent:
                return agent.call("test.who")

        me = {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid(), "user": _user()}
        assert await blocking(ask) == me
        async with connect(name) as link:
            assert await link.call("test.who") == me
    assert not path.exists()


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


async def test_a_program_on_trio_may_be_called_back(tmp_path: Path) -> None:
    offered = Registry()

    @offered.method("test.double")
    async def double(call: Call, number: int) -> int:
        """Twice that."""
        return 2 * number

    async with serving(tmp_path / "guest.sock") as name, connect(name, offered) as link:
        assert await link.call("test.back") == 42


async def test_a_blocking_program_refuses_to_be_called(tmp_path: Path) -> None:
    def ask(name: str) -> None:
        with Agent(name) as agent:
            with pytest.raises(RemoteFault) as caught:
                agent.call("test.back")
            # The handler passed its own caller's refusal on as an internal error.
            assert caught.value.code == FaultCode.INTERNAL_ERROR
            assert "offers no methods" in str(caught.value)
            assert agent.call("va.ping") is None

    async with serving(tmp_path / "guest.sock") as name:
        await blocking(partial(ask, name))


async def test_errors_of_a_blocking_program_have_their_kind(tmp_path: Path) -> None:
    def ask(name: str) -> None:
        with pytest.raises(NotThere, match="the agent is not there"):
            Agent(name + "-not")
        with Agent(name) as agent:
            with pytest.raises(RemoteFault, match=r"method 'no\.such' not found"):
                agent.call("no.such")
            with pytest.raises(LocalProtocolError):
                agent.call("test.who", object())  # type: ignore[arg-type]
            with pytest.raises(CallTimeout, match=r"test\.wait: no answer"):
                agent.call("test.wait", timeout=0.1)

    async with serving(tmp_path / "guest.sock") as name:
        await blocking(partial(ask, name))


async def test_a_program_learns_that_the_agent_has_ended(tmp_path: Path) -> None:
    path, scope = str(tmp_path / "guest.sock"), trio.CancelScope()

    async def serve(*, task_status: trio.TaskStatus[bool]) -> None:
        with scope:
            await serve_local(path, [topic], task_status=task_status)

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)

            async def wait_until_it_ends() -> None:
                async with connect(path) as link:
                    assert await link.call("va.ping") is None
                    scope.cancel()
                    await trio.sleep_forever()

            with pytest.raises(LinkBroken, match=r"guest\.sock: "):
                await wait_until_it_ends()


async def test_who_says_no_hello_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HELLO_TIME", 0.05)
    gone: list[int] = []
    async with serving(tmp_path / "guest.sock", gone) as name, await trio.open_unix_socket(name) as silent:
        while await silent.receive_some():
            pass  # the agent's own hellos
        async with connect(name) as link:
            assert await link.call("va.ping") is None
        assert gone[0] == 1


async def test_who_talks_nonsense_harms_nobody(tmp_path: Path) -> None:
    host = encode(Request("x", xmlrpc.encode_call("va.hello", [Hello(Role.HOST, "0" * 16, "x").to_value()])))
    async with serving(tmp_path / "guest.sock") as name:
        for said in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 100000, os.urandom(65536), host, host[:-9]):
            async with await trio.open_unix_socket(name) as nonsense:
                with suppress(trio.BrokenResourceError):
                    await nonsense.send_all(said)
                async with connect(name) as link:
                    assert await link.call("va.ping") is None


async def test_too_many_are_sent_away_and_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 2)
    async with serving(tmp_path / "guest.sock") as name:
        async with connect(name), connect(name):
            with pytest.raises(NotReady, match="too many programs"):
                async with connect(name):
                    pass
            with pytest.raises(NotReady, match="too many programs"):
                await blocking(partial(Agent, name))
        async with connect(name) as link:
            assert await link.call("va.ping") is None


def test_users_have_a_bound_and_leave_places_for_root() -> None:
    local = LocalServer([])
    for _ in range(server.CLIENTS_OF_UID):
        assert local._has_place(1000)
        local._clients[1000] += 1
    assert not local._has_place(1000)
    assert local._has_place(1001)
    uid = 2000
    while local._has_place(uid):
        local._clients[uid] += 1
        uid += 1
    assert local._clients.total() == server.CLIENTS_MAX - server.ROOT_PLACES
    for _ in range(server.ROOT_PLACES):
        assert local._has_place(0)
        local._clients[0] += 1
    assert not local._has_place(0)


async def test_who_connects_again_and_again_is_slowed_down(autojump_clock: trio.testing.MockClock) -> None:
    local = LocalServer([])
    for _ in range(server.CONNECT_BURST + 100):
        await local._until_due(1000)
    assert trio.current_time() == pytest.approx(100 / server.CONNECT_RATE, rel=0.1)
    before = trio.current_time()
    await local._until_due(1001)
    assert trio.current_time() == before


async def test_between_two_bites_of_whoever_floods_everything_else_has_its_turn() -> None:
    turnstile, rounds, passed = Turnstile(), 0, 0

    async def flood() -> None:
        nonlocal passed
        for _ in range(20):
            await turnstile.pass_through()
            passed += 1

    async def host() -> None:
        nonlocal rounds
        while passed < 50 * 20:
            before = passed
            await trio.lowlevel.checkpoint()
            assert passed - before <= 1
            rounds += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(host)
        for _ in range(50):
            nursery.start_soon(flood)
    assert rounds >= 50 * 20


async def test_a_socket_that_cannot_be_made_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = tmp_path / "guest.sock"
    with trio.fail_after(DEADLINE), socket.socket(socket.AF_UNIX) as other:
        other.bind(str(taken))
        other.listen()
        for path in (taken, tmp_path / "a" / "b" / "guest.sock"):
            async with trio.open_nursery() as nursery:
                assert await nursery.start(serve_local, str(path), []) is False
    assert caplog.text.count("cannot reach the agent") == 2


def test_a_caller_is_told_in_words() -> None:
    assert str(Caller(12, 1000, 1000, "alice")) == "alice (uid 1000, pid 12)"
