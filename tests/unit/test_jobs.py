"""Client and server jobs: each state, each cancel, and the slots that must come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from virtagent_protocol import xmlrpc
from virtagent_protocol.calls import ClientJobs
from virtagent_protocol.counters import Counters
from virtagent_protocol.errors import FaultCode, LocalProtocolError, RemoteFault, SessionReset
from virtagent_protocol.jobs import TRANSITIONS, ClientState, Job, ServerState
from virtagent_protocol.limits import INLINE_MAX, PeerLimits, Settings
from virtagent_protocol.messages import Cancel, Message, Request, Response
from virtagent_protocol.outbox import Outbox, Outgoing
from virtagent_protocol.reader import MessageReader
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.serving import ServerJobs
from virtagent_protocol.session import Role
from virtagent_protocol.streams import Streams
from virtagent_protocol.values import Value

SESSION = "00000000000000a1-00000000000000b2"


def message_of(outgoing: Outgoing) -> Message:
    (event,) = MessageReader().feed(b"".join(outgoing.parts))
    assert isinstance(event, (Request, Response, Cancel))
    return event


class Wire:
    """Plays the writer task by hand: a test decides when a message is taken, and when it is written."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def take(self) -> tuple[Outgoing, Message]:
        with trio.fail_after(1):
            outgoing = await self._outbox.take()
        return outgoing, message_of(outgoing)

    async def send(self) -> Message:
        outgoing, message = await self.take()
        outgoing.on_written()
        return message

    @property
    def empty(self) -> bool:
        return len(self._outbox) == 0


# --- The table -------------------------------------------------------------------------------------


def test_a_transition_that_is_not_in_the_table_raises() -> None:
    job: Job[ClientState] = Job("t", ClientState.NEW)
    with pytest.raises(LocalProtocolError, match="NEW → READ"):
        job.advance(ClientState.READ)
    server: Job[ServerState] = Job("t", ServerState.EXECUTING)
    with pytest.raises(LocalProtocolError, match="EXECUTING → SENT"):
        server.advance(ServerState.SENT)


def test_every_state_leads_to_done_and_done_leads_nowhere() -> None:
    for states in (ClientState, ServerState):
        for state in states:
            followers = TRANSITIONS[state]
            assert (states.DONE in followers) is (state is not states.DONE)


# --- Client jobs -----------------------------------------------------------------------------------


class Client:
    """Client jobs with their wire, and calls that run in the background."""

    def __init__(self, nursery: trio.Nursery, settings: Settings, peer: PeerLimits) -> None:
        self.counters = Counters()
        self.outbox = Outbox()
        self.wire = Wire(self.outbox)
        self.jobs = ClientJobs(settings, self.outbox, self.counters)
        self.jobs.open("00000000000000a1")
        self.jobs.begin(SESSION, peer)
        self._nursery = nursery
        self.outcomes: list[Value | Exception] = []

    async def start_call(self, method: str = "t.x") -> trio.CancelScope:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                try:
                    self.outcomes.append(await self.jobs.call(method, []))
                except (RemoteFault, SessionReset) as error:
                    self.outcomes.append(error)

        self._nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        return scope

    async def answer(self, tag: str, value: Value) -> None:
        self.jobs.on_response(Response(tag, xmlrpc.encode_result(value), SESSION))
        await trio.testing.wait_all_tasks_blocked()

    @property
    def in_flight(self) -> Value:
        return self.jobs.figures()["in-flight"]


@asynccontextmanager
async def client(settings: Settings | None = None, peer: PeerLimits | None = None) -> AsyncIterator[Client]:
    async with trio.open_nursery() as nursery:
        yield Client(nursery, settings or Settings(), peer or PeerLimits())
        nursery.cancel_scope.cancel()


async def test_a_call_goes_through_all_its_states_and_frees_its_slot() -> None:
    async with client() as c:
        await c.start_call("t.add")
        request = await c.wire.send()
        assert isinstance(request, Request)
        assert xmlrpc.decode_call(request.body) == ("t.add", [])
        assert request.session == SESSION
        assert c.in_flight == 1
        await c.answer(request.tag, 42)
        assert c.outcomes == [42]
        assert c.in_flight == 0


async def test_no_more_than_send_max_calls_are_in_flight_and_the_others_wait_their_turn() -> None:
    async with client(Settings(send_max=2)) as c:
        for name in ("t.a", "t.b", "t.c", "t.d"):
            await c.start_call(name)
        sent = [await c.wire.send(), await c.wire.send()]
        assert c.wire.empty
        assert c.jobs.figures() == {"in-flight": 2, "waiting": 2, "slots": 2}
        await c.answer(sent[1].tag, 1)  # type: ignore[union-attr]
        third = await c.wire.send()
        assert isinstance(third, Request)
        assert xmlrpc.decode_call(third.body)[0] == "t.c"
        assert c.wire.empty


async def test_the_peers_limit_counts_if_it_is_smaller() -> None:
    async with client(Settings(send_max=16), PeerLimits(requests=1)) as c:
        await c.start_call()
        await c.start_call()
        await c.wire.send()
        assert c.wire.empty


async def test_a_call_cancelled_while_it_waits_for_a_slot_was_never_made() -> None:
    async with client(Settings(send_max=1)) as c:
        await c.start_call()
        second = await c.start_call()
        second.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await c.wire.send()
        assert c.wire.empty
        assert c.jobs.figures() == {"in-flight": 1, "waiting": 0, "slots": 1}


async def test_a_call_cancelled_in_the_send_queue_was_never_made() -> None:
    async with client(Settings(send_max=1)) as c:
        scope = await c.start_call()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert c.wire.empty
        assert c.in_flight == 0


async def test_a_call_cancelled_after_it_was_sent_is_cancelled_at_the_peer_and_its_slot_is_free() -> None:
    async with client(Settings(send_max=1)) as c:
        scope = await c.start_call()
        request = await c.wire.send()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert c.in_flight == 0
        cancel = await c.wire.send()
        assert isinstance(cancel, Cancel)
        assert isinstance(request, Request)
        assert (cancel.tag, cancel.session) == (request.tag, SESSION)
        await c.answer(request.tag, "late")
        assert c.counters.drops == {"late-reply": 1}
        await c.start_call()
        next_request = await c.wire.send()
        assert isinstance(next_request, Request)
        await c.answer(next_request.tag, "its own")
        assert c.outcomes == ["its own"]


async def test_a_call_cancelled_while_it_is_half_written_is_written_whole_then_cancelled() -> None:
    async with client() as c:
        scope = await c.start_call()
        outgoing, _ = await c.wire.take()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert c.in_flight == 0
        outgoing.on_written()
        assert isinstance(await c.wire.send(), Cancel)


async def test_an_answer_to_a_request_that_was_not_sent_yet_is_nobodys_answer() -> None:
    async with client() as c:
        await c.start_call()
        c.jobs.on_response(Response("00000000000000a1-00000001", xmlrpc.encode_result("guessed"), SESSION))
        await trio.testing.wait_all_tasks_blocked()
        assert c.outcomes == []
        assert c.counters.drops == {"unknown-reply": 1}


async def test_a_reset_fails_calls_in_every_state() -> None:
    async with client(Settings(send_max=2)) as c:
        await c.start_call()
        await c.wire.send()  # SENT
        await c.start_call()  # BUSY
        await c.start_call()  # NEW
        c.jobs.reset("the test says so")
        c.outbox.clear()
        await trio.testing.wait_all_tasks_blocked()
        assert [str(outcome) for outcome in c.outcomes] == ["the test says so"] * 3
        assert c.jobs.figures() == {"in-flight": 0, "waiting": 0, "slots": 2}
        assert c.wire.empty, "a cancel for a session that has ended would mean nothing"


async def test_a_call_larger_than_the_peer_takes_is_a_local_error() -> None:
    async with client(peer=PeerLimits(body=100)) as c:
        with pytest.raises(LocalProtocolError, match="the other end takes 100"):
            await c.jobs.call("t.x", ["x" * 100])


# --- Server jobs -----------------------------------------------------------------------------------


class Server:
    """Server jobs with their wire and handlers that a test holds and releases."""

    def __init__(self, nursery: trio.Nursery, settings: Settings) -> None:
        self.counters = Counters()
        self.outbox = Outbox()
        self.wire = Wire(self.outbox)
        self.released = trio.Event()
        self.running = 0
        self.most_running = 0
        self.log: list[str] = []
        streams = Streams(Role.HOST, self.outbox, self.counters)
        self.jobs = ServerJobs(self._registry(), settings, self.outbox, self.counters, streams)
        self.jobs.open(nursery)
        self._count = 0

    def _registry(self) -> Registry:
        registry = Registry()

        @registry.method("t.held")
        async def held(call: Call) -> str:
            """Wait until the test releases it."""
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                await self.released.wait()
            finally:
                self.running -= 1
            return call.tag

        @registry.method("t.quick")
        async def quick(call: Call) -> str:
            """Answer."""

            async def after() -> None:
                self.log.append(f"after {call.tag}")

            call.after_reply.append(after)
            return call.tag

        @registry.method("t.inline", inline=True)
        async def inline(call: Call) -> bool:
            """Answer outside the slots."""
            return True

        @registry.method("t.huge")
        async def huge(call: Call) -> str:
            """Answer with more than a message carries."""
            return "x" * 2**21

        return registry

    async def request(self, method: str, tag: str = "") -> str:
        self._count += 1
        tag = tag or f"c{self._count}"
        self.jobs.on_request(Request(tag, xmlrpc.encode_call(method, []), SESSION))
        await trio.testing.wait_all_tasks_blocked()
        return tag

    async def cancel(self, tag: str) -> None:
        self.jobs.on_cancel(Cancel(tag, SESSION))
        await trio.testing.wait_all_tasks_blocked()

    async def fault(self) -> int:
        response = await self.wire.send()
        assert isinstance(response, Response)
        _, fault = xmlrpc.decode_response(response.body)
        assert fault is not None
        return fault[0]


@asynccontextmanager
async def server(settings: Settings | None = None) -> AsyncIterator[Server]:
    async with trio.open_nursery() as nursery:
        yield Server(nursery, settings or Settings())
        nursery.cancel_scope.cancel()


async def test_a_served_call_is_answered_under_its_tag_and_follows_up_after_it_was_written() -> None:
    async with server() as s:
        tag = await s.request("t.quick")
        outgoing, response = await s.wire.take()
        assert isinstance(response, Response)
        assert (response.tag, response.session) == (tag, SESSION)
        assert xmlrpc.decode_response(response.body) == (tag, None)
        await trio.testing.wait_all_tasks_blocked()
        assert s.log == []
        outgoing.on_written()
        await trio.testing.wait_all_tasks_blocked()
        assert s.log == [f"after {tag}"]
        assert s.counters.served == {"ok": 1}


async def test_no_more_than_execute_max_handlers_run_and_one_more_than_the_queue_is_refused() -> None:
    async with server(Settings(execute_max=2, queue_max=3)) as s:
        for _ in range(5):
            await s.request("t.held")
        assert s.jobs.figures() == {"executing": 2, "waiting": 3, "slots": 2}
        await s.request("t.held")
        assert await s.fault() == FaultCode.QUEUE_FULL
        s.released.set()
        await trio.testing.wait_all_tasks_blocked()
        answered = [await s.wire.send() for _ in range(5)]
        assert {m.tag for m in answered if isinstance(m, Response)} == {"c1", "c2", "c3", "c4", "c5"}
        assert s.most_running == 2


async def test_a_slot_is_held_until_the_reply_is_written() -> None:
    async with server(Settings(execute_max=1)) as s:
        await s.request("t.quick")
        await s.request("t.quick")
        outgoing, _ = await s.wire.take()
        assert s.wire.empty
        assert s.jobs.figures() == {"executing": 1, "waiting": 1, "slots": 1}
        outgoing.on_written()
        assert isinstance(await s.wire.send(), Response)


async def test_inline_methods_answer_while_every_slot_is_taken() -> None:
    async with server(Settings(execute_max=1, queue_max=1)) as s:
        await s.request("t.held")
        await s.request("t.held")
        tag = await s.request("t.inline")
        response = await s.wire.send()
        assert isinstance(response, Response)
        assert response.tag == tag


@pytest.mark.parametrize("method", ["t.inline", "t.unknown"])
async def test_a_peer_that_reads_no_replies_costs_a_bounded_number_of_them(method: str) -> None:
    async with server() as s:
        for _ in range(3 * INLINE_MAX):
            await s.request(method)
        assert len(s.outbox) == INLINE_MAX
        assert s.counters.drops == {"overload": 2 * INLINE_MAX}
        while not s.wire.empty:
            await s.wire.send()
        await s.request(method)
        assert len(s.outbox) == 1


async def test_cancelling_a_call_that_waits_takes_it_from_the_queue() -> None:
    async with server(Settings(execute_max=1, queue_max=1)) as s:
        await s.request("t.held")
        tag = await s.request("t.held")
        await s.cancel(tag)
        assert s.jobs.figures() == {"executing": 1, "waiting": 0, "slots": 1}
        assert s.wire.empty


async def test_cancelling_a_call_that_executes_cancels_its_handler_and_starts_the_next() -> None:
    async with server(Settings(execute_max=1)) as s:
        tag = await s.request("t.held")
        await s.request("t.quick")
        await s.cancel(tag)
        assert s.running == 0
        response = await s.wire.send()
        assert isinstance(response, Response)
        assert response.tag == "c2"
        assert s.counters.served == {"cancelled": 1, "ok": 1}


async def test_cancelling_a_call_whose_reply_waits_takes_the_reply_back() -> None:
    async with server() as s:
        tag = await s.request("t.quick")
        await s.cancel(tag)
        assert s.wire.empty
        assert s.log == [], "it was never replied to, so it does not follow up"
        assert s.jobs.figures()["executing"] == 0


async def test_cancelling_a_call_whose_reply_is_half_written_changes_nothing() -> None:
    async with server() as s:
        tag = await s.request("t.quick")
        outgoing, _ = await s.wire.take()
        await s.cancel(tag)
        outgoing.on_written()
        await trio.testing.wait_all_tasks_blocked()
        assert s.log == [f"after {tag}"]
        assert s.jobs.figures()["executing"] == 0


async def test_cancelling_what_is_unknown_is_no_error() -> None:
    async with server() as s:
        await s.cancel("never-seen")
        assert s.wire.empty


async def test_a_reset_cancels_calls_in_every_state_and_starts_none_of_those_that_wait() -> None:
    async with server(Settings(execute_max=2)) as s:
        await s.request("t.quick")  # REPLYING
        await s.request("t.held")  # EXECUTING
        await s.request("t.quick")  # NEW
        await s.request("nonsense")  # a refusal
        s.outbox.clear()
        s.jobs.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert s.wire.empty
        assert s.log == []
        assert s.running == 0
        assert s.jobs.figures() == {"executing": 0, "waiting": 0, "slots": 2}
        for _ in range(INLINE_MAX):
            await s.request("t.inline")
        assert s.counters.drops == {}


async def test_a_tag_that_is_in_use_is_not_served_twice() -> None:
    async with server() as s:
        await s.request("t.held", "same")
        await s.request("t.quick", "same")
        assert s.wire.empty
        assert s.counters.drops == {"duplicate-tag": 1}


async def test_a_result_that_does_not_fit_a_message_is_a_fault() -> None:
    async with server() as s:
        await s.request("t.huge")
        assert await s.fault() == FaultCode.TOO_LARGE


async def test_a_body_that_is_no_call_is_a_fault() -> None:
    async with server() as s:
        s.jobs.on_request(Request("t", b"<nonsense/>", SESSION))
        assert await s.fault() == FaultCode.PARSE_ERROR


def test_settings_below_one_are_refused() -> None:
    factories: list[Callable[[], Settings]] = [
        lambda: Settings(send_max=0),
        lambda: Settings(execute_max=0),
        lambda: Settings(queue_max=-1),
    ]
    for make in factories:
        with pytest.raises(ValueError, match="at least 1"):
            make()
