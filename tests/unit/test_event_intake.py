"""Events from the guest's log to the host's journal, whatever happens in between."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from virtagent_guest.events import log as log_module
from virtagent_guest.events.log import EventLog
from virtagent_guest.local.caller import Caller
from virtagent_host.events import GUEST_EVENT, GUEST_EVENTS_LOST, intake
from virtagent_host.events.intake import GuestEvents
from virtagent_protocol.bucket import TokenBucket
from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.events import METHOD, Batch
from virtagent_protocol.registry import Call

Told = list[tuple[str, dict[str, Any]]]
ALICE = Caller(10, 1000, 1000, "alice")


class Host:
    """The host's end, which may be started again."""

    def __init__(self, path: Path | None = None, burst: int = intake.BURST) -> None:
        self.path, self.burst = path, burst
        self.told: Told = []
        self.start()

    def start(self) -> None:
        self.events = GuestEvents("vm", self.path, lambda name, data: self.told.append((name, dict(data))))
        self.events._bucket = TokenBucket(self.burst, intake.RATE)
        self.receive: Callable[..., Any] = self.events.methods().get(METHOD).handler

    async def take(self, batch: Batch) -> int:
        answer = await self.receive(Call(METHOD, "tag"), batch.to_value())
        confirmed = answer["confirmed"]
        assert isinstance(confirmed, int)
        return confirmed

    def take_now(self, batch: Batch) -> int:
        """Take a batch, outside of trio."""
        return trio.run(self.take, batch, clock=trio.testing.MockClock(autojump_threshold=0))

    def held(self) -> list[dict[str, Any]]:
        return self.events.journal.read(0, 100000)


# --- Lost sessions, at any moment ------------------------------------------------------------------------


class Crossing(RuleBasedStateMachine):
    """An agent, a host, and a link between them that fails; each may be killed and started again."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.unsent = Path(self.directory.name, "unsent")
        self.host = Host(Path(self.directory.name, "vm.events"), burst=10**6)
        self.guest = EventLog()
        self.guest.keep(self.unsent)
        self.emitted = 0

    def teardown(self) -> None:
        self.host.events.journal.close()
        self.directory.cleanup()

    @rule(count=st.integers(1, 70), by_agent=st.booleans())
    def something_happens(self, count: int, by_agent: bool) -> None:
        for _ in range(count):
            self.emitted += 1
            self.guest.emit("event", {"n": self.emitted}, None if by_agent else ALICE)

    @precondition(lambda self: len(self.guest) > 0)
    @rule()
    def a_batch_goes_over_and_is_confirmed(self) -> None:
        self.guest.confirm(self.host.take_now(self.guest.batch()))

    @precondition(lambda self: len(self.guest) > 0)
    @rule()
    def a_batch_goes_over_and_its_answer_is_lost(self) -> None:
        self.host.take_now(self.guest.batch())

    @precondition(lambda self: len(self.guest) > 0)
    @rule(taken=st.integers(1, 64))
    def a_batch_is_taken_in_part(self, taken: int) -> None:
        batch = self.guest.batch()
        part = Batch(batch.log, batch.confirmed, batch.events[:taken])
        self.guest.confirm(self.host.take_now(part))

    @rule()
    def the_host_is_killed(self) -> None:
        self.host.events.journal.close()
        self.host.start()

    @precondition(lambda self: len(self.guest) > 0)
    @rule(cut=st.integers(1, 2000))
    def the_host_is_killed_while_it_writes(self, cut: int) -> None:
        path = self.host.path
        assert path is not None
        before = path.stat().st_size if path.exists() else 0
        self.host.take_now(self.guest.batch())
        self.host.events.journal.close()
        if path.exists():
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.truncate(max(before, size - cut))
        self.host.start()

    @rule()
    def the_agent_is_killed(self) -> None:
        self.guest = EventLog()
        self.guest.keep(self.unsent)

    @invariant()
    def what_is_held_is_what_happened_once_and_in_order(self) -> None:
        held = [entry["data"]["n"] for entry in self.host.held()]
        waiting = [int(event.data.split(":")[1][:-1]) for event in self.guest._events.values()]
        assert held == list(range(1, len(held) + 1))
        assert waiting == list(range(self.emitted - len(waiting) + 1, self.emitted + 1))
        assert len(held) >= self.emitted - len(waiting)


TestCrossing = Crossing.TestCase
TestCrossing.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["emit", "send", "lose"]), max_size=60))
def test_what_had_no_room_is_told_as_gaps_that_add_up(steps: list[str]) -> None:
    with pytest.MonkeyPatch.context() as small:
        small.setattr(log_module, "EVENTS_MAX", 3)
        guest, host = EventLog(), Host(burst=10**6)
        for step in [*steps, "emit", "send", "send"]:
            if step == "emit":
                guest.emit("event", {}, ALICE)
            elif len(guest):
                confirmed = host.take_now(guest.batch())
                if step == "send":
                    guest.confirm(confirmed)
        held = host.held()
        numbers = [entry["sequence"] for entry in held if "event" in entry]
        assert numbers == sorted(set(numbers))
        assert len(numbers) + sum(entry.get("lost", 0) for entry in held) == guest.last
        assert [entry["position"] for entry in held] == list(range(1, len(held) + 1))


# --- One thing at a time ---------------------------------------------------------------------------------


async def test_events_and_gaps_are_told_to_the_bridge() -> None:
    guest, host = EventLog(lambda: 1.25), Host()
    guest.emit("a", {"n": [1]}, ALICE)
    guest.emit("b", {})
    guest.emit("c", {})
    del guest._events[2]
    assert await host.take(guest.batch()) == 3
    (first, one), (second, gap), (third, two) = host.told
    assert (first, second, third) == (GUEST_EVENT, GUEST_EVENTS_LOST, GUEST_EVENT)
    assert one.pop("received")
    assert one == {
        "name": "vm",
        "position": 1,
        "log": guest.id,
        "sequence": 1,
        "time": "1970-01-01T00:00:01.250000+00:00",
        "event": "a",
        "data": {"n": [1]},
        "caller": {"pid": 10, "uid": 1000, "gid": 1000, "user": "alice"},
    }
    assert (gap["position"], gap["sequence"], gap["lost"]) == (2, 2, 1)
    assert two["position"] == 3
    assert "caller" not in two


async def test_what_another_host_has_confirmed_is_no_gap() -> None:
    guest, host = EventLog(), Host()
    for _ in range(3):
        guest.emit("a", {})
    guest.confirm(2)
    await host.take(guest.batch())
    assert [entry["sequence"] for entry in host.held()] == [3]


async def test_a_guest_that_was_taken_back_to_an_earlier_state_loses_nothing() -> None:
    clock = [1.0]
    guest, host = EventLog(lambda: clock[0]), Host()
    for _ in range(5):
        guest.emit("before", {})
    guest.confirm(await host.take(guest.batch()))
    # Its memory as it was after the second event.
    restored = EventLog(lambda: clock[0])
    restored.id, restored.confirmed, restored._next = guest.id, 2, 3
    clock[0] = 2.0
    restored.emit("short", {})
    assert await host.take(restored.batch()) == 3
    # And once more, with so many others that they reach beyond what the host knows.
    restored.confirmed, restored._next = 2, 3
    restored._events.clear()
    restored._held.clear()
    clock[0] = 3.0
    for _ in range(6):
        restored.emit("long", {})
    restored.confirm(await host.take(restored.batch()))
    assert len(restored) == 0
    assert [entry["event"] for entry in host.held()] == ["before"] * 5 + ["short"] + ["long"] * 6
    assert not any("lost" in entry for entry in host.held())


async def test_a_rebooted_guest_begins_a_new_log() -> None:
    host = Host()
    for name in ("first", "second"):
        guest = EventLog()
        guest.emit(name, {})
        await host.take(guest.batch())
    assert [(entry["event"], entry["sequence"]) for entry in host.held()] == [("first", 1), ("second", 1)]


async def test_a_flood_is_slowed_down_to_a_rate(autojump_clock: trio.testing.MockClock) -> None:
    guest, host = EventLog(), Host()
    began = trio.current_time()
    for _ in range(intake.BURST + 1000):
        guest.emit("flood", {}, ALICE)
        if len(guest) == 64:
            while len(guest):
                guest.confirm(await host.take(guest.batch()))
    while len(guest):
        guest.confirm(await host.take(guest.batch()))
    assert trio.current_time() - began == pytest.approx(1000 / intake.RATE, rel=0.1)
    assert len(host.held()) == intake.BURST + 1000


async def test_a_second_call_beside_one_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    guest, host = EventLog(), Host()
    while host.events._bucket.take(trio.current_time()):
        pass
    guest.emit("a", {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.take, guest.batch())
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Fault) as caught:
            await host.take(guest.batch())
        assert caught.value.code == FaultCode.NOT_READY
    assert len(host.held()) == 1


async def test_a_call_that_was_given_up_leaves_the_way_free(autojump_clock: trio.testing.MockClock) -> None:
    guest, host = EventLog(), Host()
    while host.events._bucket.take(trio.current_time()):
        pass
    guest.emit("a", {})
    with trio.move_on_after(0.001):
        await host.take(guest.batch())
    assert host.held() == []
    assert await host.take(guest.batch()) == 1


async def test_what_is_no_batch_is_refused_in_words() -> None:
    host = Host()
    with pytest.raises(Fault, match="member 'log' must be string") as caught:
        await host.receive(Call(METHOD, "tag"), {})
    assert caught.value.code == FaultCode.INVALID_PARAMS


async def test_what_is_kept_is_read_from_a_position_on() -> None:
    guest, host = EventLog(), Host()
    for _ in range(5):
        guest.emit("a", {})
    await host.take(guest.batch())
    answer = host.events.read(1, 2)
    assert [entry["position"] for entry in answer["events"]] == [2, 3]  # type: ignore[attr-defined]
    assert {key: answer[key] for key in ("next", "last", "oldest", "missed")} == {
        "next": 3,
        "last": 5,
        "oldest": 1,
        "missed": 0,
    }
