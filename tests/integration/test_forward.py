"""Forwarded connections between two real processes: as TCP's users expect, and as a hostile guest would."""

from __future__ import annotations

import hashlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import cast

import pytest
import trio
import trio.testing

from tests.integration.forwardlab import (
    BIG,
    DEADLINE,
    NAME,
    Lab,
    dial,
    echo,
    interrupt,
    kill_connection,
    lab,
    serve,
    swap,
    until_broken,
)
from tests.integration.hostilelab import va_guest
from tests.unit.linkpair import linked, make_link
from virtagent_guest.forward.host import HOST
from virtagent_guest.methods.forward import registry as guest_methods
from virtagent_host.commands import InvalidArguments
from virtagent_host.forward import services
from virtagent_host.forward.table import PENDING_MAX, PENDING_TIME, Fds
from virtagent_host.service.vm import Vm
from virtagent_protocol.address import parse_address
from virtagent_protocol.errors import FailureKind, RemoteFault
from virtagent_protocol.limits import Settings
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.opening import until_connected
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.values import Value

BOTH_WAYS = pytest.mark.parametrize("way", ["-L", "-R"])


@pytest.fixture(scope="module")
def vm() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Lab]:
    """A VM of which a test ends a part."""
    with lab() as made:
        yield made


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE):
        yield


@BOTH_WAYS
@pytest.mark.parametrize("listening", ["tcp", "unix"])
@pytest.mark.parametrize("serving", ["tcp", "unix"])
async def test_the_end_of_what_a_client_sends_is_passed_on_and_the_answer_comes(
    vm: Lab, way: str, listening: str, serving: str
) -> None:
    async def digest(stream: trio.SocketStream) -> None:
        seen = hashlib.sha256()
        async with stream:
            async for data in stream:
                seen.update(data)
            await stream.send_all(seen.hexdigest().encode())

    async with trio.open_nursery() as nursery:
        target = await serve(nursery, digest, vm.path() if serving == "unix" else None)
        front = vm.path() if listening == "unix" else "0"
        async with vm.forwarding(way, f"{front}:{target}") as forwarding:
            stream = await dial(await forwarding.address())
            answer = await swap(stream, BIG)
        nursery.cancel_scope.cancel()
    assert answer.decode() == hashlib.sha256(BIG).hexdigest()


@BOTH_WAYS
async def test_a_server_that_ends_first_still_hears_its_client(vm: Lab, way: str) -> None:
    heard: list[bytes] = []
    done = trio.Event()

    async def greet_and_listen(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            heard.append(b"".join([data async for data in stream]))
        done.set()

    async with trio.open_nursery() as nursery:
        target = await serve(nursery, greet_and_listen)
        async with (
            vm.forwarding(way, f"0:{target}") as forwarding,
            await dial(await forwarding.address()) as stream,
        ):
            assert b"".join([data async for data in stream]) == b"hello"
            await stream.send_all(b"still there")
            await stream.send_eof()
            await done.wait()
        nursery.cancel_scope.cancel()
    assert heard == [b"still there"]


@BOTH_WAYS
async def test_a_connection_that_one_side_resets_is_reset_at_the_other(vm: Lab, way: str) -> None:
    connected, felt = trio.Event(), trio.Event()
    server_resets = False

    async def serve_one(stream: trio.SocketStream) -> None:
        async with stream:
            assert await stream.receive_some() == b"x"
            if server_resets:
                kill_connection(stream)
            else:
                connected.set()
                await until_broken(stream)
                felt.set()

    async with trio.open_nursery() as nursery:
        target = await serve(nursery, serve_one)
        async with vm.forwarding(way, f"0:{target}") as forwarding:
            address = await forwarding.address()
            stream = await dial(address)
            await stream.send_all(b"x")
            await connected.wait()
            kill_connection(stream)
            await felt.wait()
            server_resets = True
            async with await dial(address) as stream:
                await stream.send_all(b"x")
                await until_broken(stream)
        nursery.cancel_scope.cancel()


@BOTH_WAYS
async def test_one_that_is_stuck_keeps_no_other_waiting(vm: Lab, way: str) -> None:
    first = True

    async def stick_once(stream: trio.SocketStream) -> None:
        nonlocal first
        if first:
            first = False
            async with stream:
                await trio.sleep_forever()
        await echo(stream)

    async with trio.open_nursery() as nursery:
        target = await serve(nursery, stick_once)
        async with vm.forwarding(way, f"0:{target}") as forwarding:
            address = await forwarding.address()
            async with await dial(address) as stuck:
                sent = 0
                with trio.move_on_after(1.0):
                    while True:
                        await stuck.send_all(bytes(65536))
                        sent += 65536
                assert 0 < sent < 64 * 1024 * 1024  # it does wait, and nothing has swallowed it all
                async with trio.open_nursery() as others:
                    for number in range(20):
                        others.start_soon(echoed, address, number)
        nursery.cancel_scope.cancel()


async def echoed(address: str, number: int) -> None:
    data = number.to_bytes(4, "big") * 25_000
    assert await swap(await dial(address), data) == data


@BOTH_WAYS
async def test_a_hundred_at_once_get_through(vm: Lab, way: str) -> None:
    async with trio.open_nursery() as nursery:
        target = await serve(nursery, echo)
        async with vm.forwarding(way, f"0:{target}") as forwarding:
            address = await forwarding.address()
            async with trio.open_nursery() as clients:
                for number in range(100):
                    clients.start_soon(echoed, address, number)
        nursery.cancel_scope.cancel()


async def test_a_port_at_which_nobody_listens_resets_and_says_so(vm: Lab) -> None:
    async with vm.forwarding("-L", "0:127.0.0.1:1") as forwarding:
        async with await dial(await forwarding.address()) as stream:
            await until_broken(stream)
        failed = await forwarding.event("failed")
    assert failed["kind"] == "refused"
    assert failed["error"] == "cannot connect to tcp:127.0.0.1:1: Connection refused"


async def test_a_target_here_at_which_nobody_listens_resets_and_says_so(vm: Lab) -> None:
    async with vm.forwarding("-R", "0:127.0.0.1:1") as forwarding:
        async with await dial(await forwarding.address()) as stream:
            await until_broken(stream)
        assert (await forwarding.event("failed"))["error"] == "cannot connect: Connection refused"


async def test_what_the_guest_cannot_listen_on_is_an_error_at_once(vm: Lab) -> None:
    async with trio.open_nursery() as nursery:
        taken = await serve(nursery, echo)
        result = await vm.run("forward", NAME, "-R", f"{taken}:127.0.0.1:9")
        nursery.cancel_scope.cancel()
    assert result.returncode == 1
    assert f"cannot listen on tcp:{taken}: something is there already".encode() in result.stderr


async def test_connect_joins_stdin_and_stdout(vm: Lab) -> None:
    async with trio.open_nursery() as nursery:
        target = await serve(nursery, echo)
        result = await vm.run("connect", NAME, f"tcp:{target}", stdin=BIG)
        nursery.cancel_scope.cancel()
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == BIG


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("tcp:127.0.0.1:1", 1, b"refused: cannot connect to tcp:127.0.0.1:1: Connection refused"),
        ("no-such-host.invalid:80", 1, b"cannot connect to tcp:no-such-host.invalid:80: "),
        ("/no/such.sock", 1, b"cannot connect to unix:/no/such.sock: No such file or directory"),
        ("nonsense", 2, b"'nonsense' is not an address: write tcp:HOST:PORT or unix:/PATH"),
    ],
)
async def test_connect_says_why_it_cannot(vm: Lab, address: str, status: int, words: bytes) -> None:
    result = await vm.run("connect", NAME, address)
    assert result.returncode == status
    assert words in result.stderr
    assert result.stdout == b""


async def test_connections_end_with_the_client_that_asked_for_them(vm: Lab) -> None:
    connected, felt = trio.Event(), trio.Event()

    async def watch(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            connected.set()
            await until_broken(stream)
            felt.set()

    async with trio.open_nursery() as nursery:
        target = await serve(nursery, watch)
        async with (
            vm.forwarding("-L", f"0:{target}") as forwarding,
            await dial(await forwarding.address()) as stream,
        ):
            await stream.send_all(b"x")
            await connected.wait()
            forwarding.process.kill()
            await until_broken(stream)
            await felt.wait()
        nursery.cancel_scope.cancel()


async def test_ctrl_c_ends_the_listeners_at_both_ends(vm: Lab) -> None:
    here, there = vm.path(), vm.path()
    async with trio.open_nursery() as nursery:
        target = await serve(nursery, echo)
        async with vm.forwarding("-L", f"{here}:{target}", "-R", f"{there}:{target}") as forwarding:
            for _ in range(2):
                await swap(await dial(await forwarding.address()), b"x")
            interrupt(forwarding.process)
            assert await forwarding.process.wait() == 130
        for path in (here, there):
            while await trio.Path(path).exists():  # the guest hears of it a moment later
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_a_va_host_that_is_killed_takes_its_connections_along(own: Lab) -> None:
    connected, felt = trio.Event(), trio.Event()

    async def watch(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            connected.set()
            await until_broken(stream)
            felt.set()

    async with trio.open_nursery() as nursery:
        target = await serve(nursery, watch)
        async with (
            own.forwarding("-L", f"0:{target}") as forwarding,
            await dial(await forwarding.address()) as stream,
        ):
            await stream.send_all(b"x")
            await connected.wait()
            own.host.kill()
            await felt.wait()
            assert await forwarding.process.wait() == 6
        nursery.cancel_scope.cancel()


async def test_a_listener_in_the_guest_comes_back_after_its_agent(own: Lab) -> None:
    async with trio.open_nursery() as nursery:
        target = await serve(nursery, echo)
        async with own.forwarding("-R", f"0:{target}") as forwarding:
            assert await swap(await dial(await forwarding.address()), b"before") == b"before"
            own.guest.kill()
            await forwarding.event("lost")
            with va_guest(own.directory, own.directory / "channel.sock"):
                address = await forwarding.address()
                assert await swap(await dial(address), b"after") == b"after"
        nursery.cancel_scope.cancel()


async def test_addresses_that_do_not_answer_hold_up_no_other_call(vm: Lab) -> None:
    """More of them than there are places for calls, and no reply to any."""
    full = trio.socket.socket()
    await full.bind(("127.0.0.1", 0))
    full.listen(0)
    port = full.getsockname()[1]
    fillers = [trio.socket.socket() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        # A full queue of a listener who takes nobody answers nobody.
        for filler in fillers:
            nursery.start_soon(filler.connect, ("127.0.0.1", port))
        target = await serve(nursery, echo)
        async with vm.forwarding("-L", f"0:127.0.0.1:{port}", "-L", f"0:{target}") as forwarding:
            stuck, working = await forwarding.address(), await forwarding.address()
            for _ in range(30):
                nursery.start_soon(until_gone, stuck)
            await trio.testing.wait_all_tasks_blocked(0.2)
            start = time.monotonic()
            await echoed(working, 1)
            result = await vm.run("ping", NAME)
            assert (result.returncode, time.monotonic() - start < 5) == (0, True)
        nursery.cancel_scope.cancel()
    for sock in (full, *fillers):
        sock.close()


async def until_gone(address: str) -> None:
    stream = await dial(address)
    async with stream:
        await until_broken(stream)


# --- Services --------------------------------------------------------------------------------------------


async def test_a_program_in_the_guest_reaches_a_named_service_and_no_other() -> None:
    async with trio.open_nursery() as nursery:
        target = await serve(nursery, echo)
        with tempfile.TemporaryDirectory(prefix="services-") as directory:
            open_path, closed_path, dead_path = (f"{directory}/{name}.sock" for name in ("a", "b", "c"))
            config = "".join(
                f'[[forward]]\nlisten = "{path}"\nservice = "{service}"\n'
                for path, service in ((open_path, "web"), (closed_path, "secret"), (dead_path, "dead"))
            )
            with lab("--service", f"web=tcp:{target}", "--service", "dead=127.0.0.1:1", config=config) as vm:
                for path in (open_path, closed_path, dead_path):
                    while not await trio.Path(path).exists():
                        await trio.sleep(0.01)
                assert await swap(await dial(f"unix:{open_path}"), BIG) == BIG
                for path in (closed_path, dead_path):
                    async with await dial(f"unix:{path}") as stream:
                        assert await nothing_from(stream)
                assert "forbidden: this host offers its guest no service 'secret'" in vm.guest.log
                assert "the host cannot reach its service 'dead'" in vm.guest.log
                # Where it is, is the host's to know.
                assert "127.0.0.1:1:" not in vm.guest.log
                assert (
                    "cannot connect to tcp:127.0.0.1:1: Connection refused"
                    in (vm.runtime.path / "host.log").read_text()
                )
        nursery.cancel_scope.cancel()


async def nothing_from(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True


# --- A hostile guest, against the table of its host ------------------------------------------------------


@asynccontextmanager
async def hostile() -> AsyncIterator[tuple[Vm, Link, Someone]]:
    """A host's VM, the link of a guest that does what it likes, and a client of the bridge."""
    methods = Registry()

    @methods.method("va.listen")
    async def listen(call: Call, listener: dict[str, Value]) -> dict[str, Value]:
        number = listener["stream"]
        assert isinstance(number, int)
        call.accept(number)
        return {"address": "tcp:127.0.0.1:4000"}

    vm = Vm("demo", Settings())
    vm.link.hint(LinkEvent.PORT_OPENED, "test")
    guest = make_link(Role.GUEST, methods)
    async with linked(cast(Link, vm.link), guest), trio.open_nursery() as nursery:
        yield vm, guest, Someone(nursery)
        nursery.cancel_scope.cancel()


class Someone:
    """A client of the bridge, and the events that it was sent."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self._nursery = nursery

    def take_fd(self, name: str) -> int:
        raise AssertionError(name)

    def emit(self, name: str, data: dict[str, object]) -> None:
        self.events.append((name, data))

    async def events_sent(self) -> None:
        pass

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        self._nursery.start_soon(partial(function, *args))


def brought(guest: Link, listener: Value, peer: str = "tcp:127.0.0.1:1") -> dict[str, Value]:
    return {"listener": listener, "stream": guest.open_stream().id, "peer": peer}


async def test_a_guest_cannot_bring_connections_of_listeners_that_are_not_there() -> None:
    async with hostile() as (vm, guest, client):
        for listener in (1, 2, -1, 2**40):
            with pytest.raises(RemoteFault, match="there is no such listener"):
                await guest.call("va.forwarded", brought(guest, listener))
        number, _ = await vm.forwards.listen(client, "tcp:127.0.0.1:4000")
        await vm.forwards.unlisten(client, number)
        with pytest.raises(RemoteFault, match="there is no such listener"):
            await guest.call("va.forwarded", brought(guest, 1))
        assert client.events == []


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"listener": 1},
        {"listener": "1", "stream": 2, "peer": ""},
        {"listener": 1, "stream": 2, "peer": 3},
    ],
)
async def test_what_a_guest_says_of_a_connection_is_checked(what: dict[str, Value]) -> None:
    async with hostile() as (vm, guest, client):
        await vm.forwards.listen(client, "tcp:127.0.0.1:4000")
        with pytest.raises(RemoteFault, match=r"member '.*' must be"):
            await guest.call("va.forwarded", what)
        for stream in (0, 1, -2, 2**40):
            params: dict[str, Value] = {"listener": 1, "stream": stream, "peer": ""}
            with pytest.raises(RemoteFault, match="is not the id of a stream of yours"):
                await guest.call("va.forwarded", params)
        assert client.events == []


async def test_a_flood_of_connections_is_bounded_and_those_that_nobody_takes_are_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with hostile() as (vm, guest, client):
        number, _ = await vm.forwards.listen(client, "tcp:127.0.0.1:4000")
        streams = []
        for _ in range(PENDING_MAX):
            params = brought(guest, 1, "p" * 10_000)
            streams.append(params["stream"])
            await guest.call("va.forwarded", params)
        for _ in range(100):
            stream = guest.open_stream()
            with pytest.raises(RemoteFault, match="wait to be taken already"):
                await guest.call("va.forwarded", {"listener": 1, "stream": stream.id, "peer": ""})
            await stream.aclose()
        assert len(client.events) == PENDING_MAX
        assert {len(str(data["peer"])) for _, data in client.events} == {300}
        await trio.sleep(PENDING_TIME + 1)
        assert guest.figures()["streams"] == {"open": 1, "slots": 256}  # the listener's
        with pytest.raises(InvalidArguments, match="waits for you; it may have waited too long"):
            await vm.forwards.refuse(client, cast(int, client.events[0][1]["connection"]))
        # And there is room again.
        await guest.call("va.forwarded", brought(guest, 1))
        assert number == client.events[-1][1]["listener"]


async def test_a_client_has_no_say_over_what_is_another_ones() -> None:
    async with hostile() as (vm, guest, client), trio.open_nursery() as nursery:
        other = Someone(nursery)
        number, _ = await vm.forwards.listen(client, "tcp:127.0.0.1:4000")
        await guest.call("va.forwarded", brought(guest, 1))
        connection = cast(int, client.events[0][1]["connection"])
        with pytest.raises(InvalidArguments, match=f"you have no listener {number}"):
            await vm.forwards.unlisten(other, number)
        with pytest.raises(InvalidArguments, match=f"no connection {connection} waits for you"):
            await vm.forwards.refuse(other, connection)
        await vm.forwards.refuse(client, connection)
        assert other.events == []


async def test_a_service_that_was_not_named_is_forbidden_to_a_guest() -> None:
    async with hostile() as (_, guest, _client):
        for _ in range(100):
            stream = guest.open_stream()
            with pytest.raises(RemoteFault, match="this host offers its guest no service 'db'") as refusal:
                await guest.call("va.connect_service", {"service": "db", "stream": stream.id})
            assert refusal.value.kind is FailureKind.FORBIDDEN
            await stream.aclose()


async def test_with_two_ports_what_a_listener_takes_comes_by_the_guests_own_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    methods = Registry()
    methods.include(guest_methods)
    vm = Vm("demo", Settings(), two_links=True)
    for link in vm.links:
        link.hint(LinkEvent.PORT_OPENED, "test")
    hosts, own = make_link(Role.GUEST, methods), make_link(Role.GUEST)
    monkeypatch.setattr(HOST, "link", own)
    async with (
        linked(cast(Link, vm.link), hosts),
        linked(cast(Link, vm.guest_link), own),
        trio.open_nursery() as nursery,
    ):
        client = Someone(nursery)
        _, address = await vm.forwards.listen(client, "tcp:127.0.0.1:0")
        stream = await dial(address)
        while not client.events:
            await trio.sleep(0.01)
        ours, theirs = socket.socketpair()
        connection = cast(int, client.events[0][1]["connection"])
        await vm.forwards.accept(client, connection, Fds(theirs.detach()))
        nursery.start_soon(echo, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        assert await swap(stream, BIG) == BIG
        assert own.counters.bytes_out > len(BIG)
        nursery.cancel_scope.cancel()


async def test_a_half_closed_connection_does_not_outlive_its_va_host(own: Lab) -> None:
    """Nothing is under way on it, and its server waits to answer."""
    ended, killed, felt = trio.Event(), trio.Event(), trio.Event()

    async def wait_with_the_answer(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some():
                pass
            ended.set()
            await killed.wait()
            with suppress(trio.BrokenResourceError):
                while True:  # recv() tells of no reset behind the end, but send() does
                    await stream.send_all(b"x")
                    await trio.sleep(0.01)
        felt.set()

    async with trio.open_nursery() as nursery:
        target = await serve(nursery, wait_with_the_answer)
        async with (
            own.forwarding("-L", f"0:{target}") as forwarding,
            await dial(await forwarding.address()) as stream,
        ):
            await stream.send_eof()
            await ended.wait()
            own.host.kill()
            killed.set()
            await felt.wait()
        nursery.cancel_scope.cancel()


async def test_connections_to_services_are_bounded() -> None:
    async with trio.open_nursery() as nursery:
        target = await serve(nursery, echo)
        address = parse_address(target)
        vm = Vm("demo", Settings(), services={"web": address})
        vm.link.hint(LinkEvent.PORT_OPENED, "test")
        guest = make_link(Role.GUEST)
        async with linked(cast(Link, vm.link), guest):
            streams = [guest.open_stream() for _ in range(services.CONNECTIONS_MAX + 1)]
            for stream in streams[:-1]:
                await guest.call("va.connect_service", {"service": "web", "stream": stream.id})
                await until_connected(stream)
            one_more: dict[str, Value] = {"service": "web", "stream": streams[-1].id}
            with pytest.raises(RemoteFault, match="64 connections to services are open already"):
                await guest.call("va.connect_service", one_more)
            # What is over makes room.
            await streams[0].send_eof()
            assert await streams[0].receive_some() == b""
            one_more["stream"] = guest.open_stream().id
            while True:
                try:
                    await guest.call("va.connect_service", one_more)
                    break
                except RemoteFault:
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
