"""What the host does for a guest that runs again: its clock, its kernel's entropy, and one event."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio

from tests.unit.linkpair import Pair, linked, make_link
from virtagent_guest.methods.entropy import pool_info
from virtagent_host.options import SetClock
from virtagent_host.service.restore import ENTROPY, PATIENCE, Cause, Restorer
from virtagent_host.service.vm import Vm
from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.limits import Settings
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.values import Struct, Value


class Guest:
    """A guest with a clock that is ahead by so many seconds."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead
        self.slow = 0.0
        self.seeds: list[bytes] = []
        self.fault: Fault | None = None
        self.sets = 0
        self.registry = Registry()

        @self.registry.method("guest.get_time")
        async def get_time(call: Call, arguments: Struct) -> int:
            await trio.sleep(self.slow)
            return time.time_ns() + int(self.ahead * 1e9)

        @self.registry.method("guest.set_time")
        async def set_time(call: Call, arguments: Struct) -> None:
            if self.fault is not None:
                raise self.fault
            self.sets += 1
            given = arguments["time"]
            assert isinstance(given, int)
            self.ahead = (given - time.time_ns()) / 1e9

        @self.registry.method("va.reseed")
        async def reseed(call: Call, entropy: bytes) -> None:
            self.seeds.append(entropy)


class Host:
    """A VM with its restorer at work.

    Attributes:
        events: the data of each VA_GUEST_RESUMED.
    """

    def __init__(self, vm: Vm, restorer: Restorer, pair: Pair) -> None:
        self.vm, self.restorer, self.pair = vm, restorer, pair
        self.events: list[dict[str, Any]] = []
        vm.emit = self._emit

    def _emit(self, name: str, data: dict[str, Any]) -> None:
        if name == "VA_GUEST_RESUMED":
            assert data.pop("name") == "demo"
            self.events.append(data)

    def stop(self, cause: Cause = Cause.PAUSE) -> None:
        self.restorer.stopped(cause)
        self.vm.pause("stopped")

    def resume(self) -> None:
        self.vm.resume()
        self.restorer.resumed()

    async def paused(self, seconds: float, cause: Cause = Cause.PAUSE) -> None:
        self.stop(cause)
        await trio.sleep(seconds)
        self.resume()
        await trio.sleep(1)

    async def event(self) -> dict[str, Any]:
        """Return the one event there was, all that is not measured exactly being rounded."""
        await trio.sleep(1)
        (event,) = self.events
        self.events.clear()
        return {name: round(value) if isinstance(value, float) else value for name, value in event.items()}


@asynccontextmanager
async def hosted(guest: Guest, set_clock: SetClock = SetClock.AFTER_RESTORE) -> AsyncIterator[Host]:
    vm = Vm("demo", Settings())
    vm.link.hint(LinkEvent.PORT_OPENED, "test")
    restorer = Restorer(vm, set_clock)
    async with linked(cast(Link, vm.link), make_link(Role.GUEST, guest.registry)) as pair:
        pair.nursery.start_soon(restorer.run)
        yield Host(vm, restorer, pair)


async def test_a_clock_that_stood_still_during_a_pause_is_set(autojump_clock: object) -> None:
    guest = Guest()
    async with hosted(guest) as host:
        guest.ahead = -5
        await host.paused(5)
        assert await host.event() == {
            "cause": "pause",
            "downtime": 5,
            "clock": "set",
            "clock-step": 5,
            "reseeded": True,
        }
        assert abs(guest.ahead) < 0.5
        assert [len(seed) for seed in guest.seeds] == [ENTROPY]


async def test_a_clock_that_is_right_is_left_alone(autojump_clock: object) -> None:
    guest = Guest(-0.2)
    async with hosted(guest) as host:
        await host.paused(3600, Cause.WAKEUP)
        event = await host.event()
        assert (event["cause"], event["clock"], event["reseeded"]) == ("wakeup", "right", True)
        assert guest.sets == 0


async def test_a_clock_behind_by_more_than_the_pause_tells_of_a_snapshot(autojump_clock: object) -> None:
    guest = Guest(-1000)
    async with hosted(guest) as host:
        await host.paused(1)
        event = await host.event()
        assert (event["cause"], event["clock"], event["clock-step"]) == ("restore", "set", 1000)


async def test_a_clock_that_is_not_to_be_set_is_left_and_no_snapshot_is_seen_in_it_twice(
    autojump_clock: object,
) -> None:
    guest = Guest(-1000)
    async with hosted(guest, SetClock.NEVER) as host:
        for cause in ("restore", "pause"):
            await host.paused(1)
            event = await host.event()
            assert (event["cause"], event["clock"], event["clock-step"]) == (cause, "left", 1000)
        assert (guest.ahead, guest.sets) == (-1000, 0)


@pytest.mark.parametrize(("code", "word"), [(FaultCode.FORBIDDEN, "refused"), (FaultCode.FAILED, "failed")])
async def test_what_the_guest_refuses_is_told_and_logged_once(
    code: FaultCode, word: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    guest = Guest(-50)
    guest.fault = Fault(code, "rule 'no clocks'")
    async with hosted(guest) as host:
        for _ in range(2):
            await host.paused(50)
            assert (await host.event())["clock"] == word
    warned = [r.message for r in caplog.records if r.message.startswith("demo: the guest's clock was not")]
    assert len(warned) == 1
    assert "rule 'no clocks'" in warned[0]


async def test_an_agent_that_knows_nothing_of_it_is_told_of_all_the_same(autojump_clock: object) -> None:
    guest = Guest()
    guest.registry = Registry()
    async with hosted(guest) as host:
        await host.paused(2)
        assert await host.event() == {
            "cause": "pause",
            "downtime": 2,
            "clock": "unknown",
            "clock-step": None,
            "reseeded": False,
        }


async def test_stopped_again_before_it_was_seen_to_it_is_seen_to_once(autojump_clock: object) -> None:
    guest = Guest(-12)
    async with hosted(guest) as host:
        host.stop(Cause.WAKEUP)
        await trio.sleep(6)
        guest.slow = 2.0
        host.resume()
        await trio.sleep(1)
        host.stop()
        guest.slow = 0.0
        await trio.sleep(5)
        host.resume()
        host.stop()
        await trio.sleep(2 * PATIENCE)
        assert host.events == []
        host.resume()
        event = await host.event()
        assert (event["cause"], event["downtime"], event["clock"]) == ("wakeup", 12 + 2 * PATIENCE, "set")


async def test_a_frozen_guest_is_seen_to_when_it_is_thawed(autojump_clock: object) -> None:
    guest = Guest(-100)
    async with hosted(guest) as host:
        host.pair.guest.set_frozen("frozen")
        await trio.sleep(1)
        await host.paused(100)
        await trio.sleep(10 * PATIENCE)
        assert host.events == []
        assert guest.sets == 0
        host.pair.guest.set_frozen("")
        assert (await host.event())["clock"] == "set"


@pytest.mark.parametrize(("state", "cause"), [("inmigrate", "migration"), ("paused", "pause")])
async def test_a_vm_that_was_found_stopped_is_seen_to(state: str, cause: str, autojump_clock: object) -> None:
    guest = Guest(-3)
    async with hosted(guest) as host:
        host.restorer.found(state)
        host.vm.pause("found so")
        await trio.sleep(3)
        host.resume()
        event = await host.event()
        assert (event["cause"], event["downtime"], event["clock"]) == (cause, None, "set")


async def test_a_vm_that_begins_is_not_restored(autojump_clock: object) -> None:
    guest = Guest(-3)
    async with hosted(guest) as host:
        host.restorer.found("prelaunch")
        host.resume()
        await trio.sleep(PATIENCE)
        assert host.events == []
        assert guest.seeds == []
        assert guest.sets == 0


@pytest.mark.parametrize("boot", ["boot-1", "another"])
async def test_a_guest_that_comes_back_in_another_qemu_was_restored(
    boot: str, autojump_clock: object
) -> None:
    guest = Guest(-3)
    vm = Vm("demo", Settings())
    vm.last_boot = boot
    vm.link.hint(LinkEvent.PORT_OPENED, "test")
    restorer = Restorer(vm, SetClock.AFTER_RESTORE)
    async with linked(cast(Link, vm.link), make_link(Role.GUEST, guest.registry)) as pair:
        host = Host(vm, restorer, pair)
        pair.nursery.start_soon(restorer.run)
        await trio.sleep(1)
        assert [event["cause"] for event in host.events] == (["restore"] if boot == "boot-1" else [])


async def test_a_guest_without_an_agent_is_not_told_of(autojump_clock: object) -> None:
    vm = Vm("demo", Settings())
    restorer = Restorer(vm, SetClock.AFTER_RESTORE)
    told: list[str] = []
    vm.emit = lambda name, data: told.append(name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restorer.run)
        restorer.stopped(Cause.PAUSE)
        restorer.resumed()
        await trio.sleep(2 * PATIENCE)
        nursery.cancel_scope.cancel()
    assert "VA_GUEST_RESUMED" not in told


@pytest.mark.parametrize("answer", ["now", -1, None, 1.5])
async def test_a_time_that_is_none_is_not_believed(answer: Value, autojump_clock: object) -> None:
    guest = Guest()
    guest.registry = Registry()

    @guest.registry.method("guest.get_time")
    async def get_time(call: Call, arguments: Struct) -> Value:
        return answer

    async with hosted(guest) as host:
        await host.paused(2)
        assert (await host.event())["clock"] == "unknown"


def test_entropy_is_given_to_the_kernel_with_all_its_bits_credited() -> None:
    assert pool_info(b"x" * 16) == (128).to_bytes(4, "little") + (16).to_bytes(4, "little") + b"x" * 16
