"""What a host does with a frozen guest: renews its lease, and tells what became of the freeze."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.unit.linkpair import Pair, linked, make_link
from virtagent_host import freezing
from virtagent_host.commands import COMMANDS
from virtagent_host.service.lease import renew_leases
from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.values import Value


class Guest:
    """A guest that notes when its lease was renewed."""

    def __init__(self, status: Value) -> None:
        self.renewed: list[float] = []
        self.methods = Registry()
        self.fails = False

        @self.methods.method("va.freeze_status")
        async def freeze_status(call: Call) -> Value:
            return status

        @self.methods.method("va.renew_freeze")
        async def renew_freeze(call: Call) -> float:
            if self.fails:
                raise Fault(FaultCode.NOT_READY, "nothing is frozen")
            self.renewed.append(trio.current_time())
            return 9.0


@asynccontextmanager
async def renewing(guest: Guest) -> AsyncIterator[Pair]:
    async with linked(make_link(Role.HOST), make_link(Role.GUEST, guest.methods)) as pair:
        pair.nursery.start_soon(renew_leases, "demo", pair.host)
        yield pair


async def test_a_lease_is_renewed_three_times_in_its_time_while_the_guest_is_frozen(
    autojump_clock: trio.testing.MockClock,
) -> None:
    guest = Guest({"status": "frozen", "lease": 9.0})
    async with renewing(guest) as pair:
        await trio.sleep(30)
        assert guest.renewed == []
        pair.guest.set_frozen("frozen")
        began = trio.current_time()
        await trio.sleep(10)
        assert [round(time - began) for time in guest.renewed] == [0, 3, 6, 9]
        pair.guest.set_frozen("")
        await trio.sleep(30)
        assert len(guest.renewed) == 4
        pair.guest.set_frozen("once more")
        await trio.sleep(1)
        assert len(guest.renewed) == 5


@pytest.mark.parametrize("status", [{}, {"lease": 0.0}, {"lease": -1.0}, {"lease": "long"}, None])
async def test_a_freeze_without_a_lease_is_left_alone(
    status: Value, autojump_clock: trio.testing.MockClock
) -> None:
    guest = Guest(status)
    async with renewing(guest) as pair:
        pair.guest.set_frozen("frozen")
        await trio.sleep(100)
        assert guest.renewed == []


async def test_a_guest_cannot_make_its_host_renew_all_the_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    guest = Guest({"lease": 1e-9})
    async with renewing(guest) as pair:
        pair.guest.set_frozen("frozen")
        await trio.sleep(3)
        assert 5 <= len(guest.renewed) <= 11


async def test_the_next_freeze_is_renewed_though_this_one_was_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    guest = Guest({"lease": 9.0})
    guest.fails = True
    async with renewing(guest) as pair:
        pair.guest.set_frozen("frozen")
        await trio.sleep(20)
        pair.guest.set_frozen("")
        await trio.sleep(1)
        guest.fails = False
        pair.guest.set_frozen("again")
        await trio.sleep(1)
        assert len(guest.renewed) == 1


class Answering:
    """A VM that answers with one value."""

    def __init__(self, answer: Value) -> None:
        self.answer = answer
        self.called: tuple[Value, ...] = ()

    async def call(self, method: str, *params: Value) -> Value:
        self.called = (method, *params)
        return self.answer


async def test_freeze_passes_times_as_doubles_and_mount_points_as_a_list() -> None:
    vm = Answering({"frozen": 1, "mounts": ["/a"], "skipped": [], "more": 1})
    arguments = COMMANDS["va_freeze"].complete({"lease": 5, "mountpoints": "/a:/b c"})
    assert await freezing.freeze(vm, arguments, None) == {"frozen": 1, "mounts": ["/a"], "skipped": []}
    assert vm.called == ("va.freeze", 5.0, 60.0, ["/a", "/b c"])
    assert all(isinstance(value, float) for value in vm.called[1:3])


@pytest.mark.parametrize("answer", [None, {}, {"thawed": 1, "held": 1, "why": "", "failures": []}])
async def test_an_answer_that_makes_no_sense_is_refused(answer: Value) -> None:
    with pytest.raises(RemoteProtocolError):
        await freezing.thaw(Answering(answer), COMMANDS["va_thaw"].complete({}), None)
