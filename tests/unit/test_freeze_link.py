"""How a host learns that its guest is frozen: by hello (SPEC.md section 4)."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.unit.linkpair import linked, make_link
from virtagent_guest.freeze.client import FreezeClient
from virtagent_guest.freeze.gate import FreezeGate
from virtagent_protocol.errors import FailureKind, Fault
from virtagent_protocol.linkstate import LinkState
from virtagent_protocol.registry import Call, Gate, Registry
from virtagent_protocol.session import Role

WHY = "2 file systems are frozen, with a lease of 10 s"


async def test_a_host_sees_the_guest_frozen_and_thawed_at_once() -> None:
    async with linked(make_link(Role.HOST), make_link(Role.GUEST)) as pair:
        session = pair.host.session
        with trio.fail_after(1):
            pair.guest.set_frozen(WHY)
            status = await pair.host.wait_for(lambda status: status.state is LinkState.FROZEN)
            assert (status.reason, pair.guest.status.state) == (WHY, LinkState.FROZEN)
            assert await pair.host.call("va.ping") is None
            pair.guest.set_frozen("")
            await pair.host.wait_for(lambda status: status.state is LinkState.READY)
        assert pair.guest.status.state is LinkState.READY
        assert pair.host.session is session
        assert pair.host.counters.sessions == 1


async def test_each_change_is_told_even_if_the_ones_before_are_still_on_their_way() -> None:
    async with linked(make_link(Role.HOST), make_link(Role.GUEST)) as pair:
        with trio.fail_after(1):
            for why in (WHY, "", "another", "", WHY, "", "last"):
                pair.guest.set_frozen(why)
            await pair.host.wait_for(lambda status: status.reason == "last")
        assert pair.host.status.state is LinkState.FROZEN


async def test_a_new_host_hears_of_a_freeze_with_the_first_hello() -> None:
    guest = make_link(Role.GUEST)
    async with linked(make_link(Role.HOST), guest):
        guest.set_frozen(WHY)
    host = make_link(Role.HOST)
    async with trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(host.run, ours)
        nursery.start_soon(guest.run, theirs)
        with trio.fail_after(1):
            await host.wait_for(lambda status: status.state is LinkState.FROZEN)
        nursery.cancel_scope.cancel()


async def test_a_freeze_lasts_over_a_heartbeat(autojump_clock: trio.testing.MockClock) -> None:
    async with linked(make_link(Role.HOST), make_link(Role.GUEST)) as pair:
        pair.guest.set_frozen(WHY)
        await trio.sleep(100)
        assert pair.host.status.reason == WHY
        pair.guest.set_frozen("")
        await trio.sleep(100)
        assert pair.host.status.state is LinkState.READY


async def test_what_may_write_is_refused_while_something_is_frozen() -> None:
    freezer = FreezeClient()
    gate = FreezeGate(Gate(), freezer)
    methods = ("va.getfile", "va.shutdown", "va.exec", "va.thaw", "guest.file_write", "system.multicall")
    for method in methods:
        await gate.admit(method, [])
    freezer.holding = True
    for method in ("va.shutdown", "va.exec"):
        with pytest.raises(Fault, match=f"{method} is refused while file systems are frozen") as caught:
            await gate.admit(method, [])
        assert caught.value.kind is FailureKind.NOT_READY
    # What a "guest." method may do is known to the table of those.
    for method in ("va.getfile", "va.thaw", "guest.file_write", "system.multicall"):
        await gate.admit(method, [])


async def test_a_policy_decides_before_the_freeze() -> None:
    class Closed(Gate):
        async def admit(self, method: str, params: object) -> None:
            raise LookupError(method)

    with pytest.raises(LookupError):
        await FreezeGate(Closed(), FreezeClient()).admit("va.getfile", [])


async def test_a_thaw_does_not_wait_for_the_calls_that_wait_for_it() -> None:
    thawed = trio.Event()
    methods = Registry()

    @methods.method("t.write")
    async def write(call: Call) -> None:
        await thawed.wait()

    @methods.method("t.thaw", urgent=True)
    async def thaw(call: Call) -> None:
        await trio.lowlevel.checkpoint()
        thawed.set()

    async with linked(make_link(Role.HOST), make_link(Role.GUEST, methods)) as pair:
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                for _ in range(10):  # more than there are slots
                    nursery.start_soon(pair.host.call, "t.write")
                await trio.testing.wait_all_tasks_blocked()
                await pair.host.call("t.thaw")
