"""Graded shutdown: who is tried, how long, and what is said of it."""

from __future__ import annotations

from typing import cast

import pytest
import trio

from tests.unit.linkpair import linked, make_link
from virtagent_host.commands import CALL_TIMEOUT
from virtagent_host.qemu.qmp import QmpConnection
from virtagent_host.service.shutdown import PRESS_EVERY, end_vm, shut_down
from virtagent_host.service.vm import Vm
from virtagent_protocol.errors import CallTimeout, LinkBroken
from virtagent_protocol.limits import Settings
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role


class PlayedQemu:
    """A QEMU that ends after so many presses of its power button, or when it is told to quit, or never."""

    def __init__(self, presses: int = 1000, *, quits: bool = True) -> None:
        self.commands: list[str] = []
        self._presses = presses
        self._quits = quits
        self._closed = trio.Event()

    async def execute(self, command: str) -> None:
        self.commands.append(command)
        await trio.lowlevel.checkpoint()
        if command == "quit" and self._quits:
            self.end()
            raise LinkBroken("QEMU closed its monitor")
        if self.commands.count("system_powerdown") >= self._presses:
            self.end()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    def end(self) -> None:
        self._closed.set()

    @property
    def connection(self) -> QmpConnection:
        return cast(QmpConnection, self)


def vm() -> Vm:
    return Vm("demo", Settings())


async def test_an_agent_that_is_known_to_be_absent_takes_no_time(autojump_clock: object) -> None:
    qemu = PlayedQemu(presses=1)
    outcome = await shut_down(vm(), qemu.connection, 60)
    assert (outcome.by, outcome.seconds) == ("acpi", 0.0)
    assert [(step.means, step.seconds) for step in outcome.steps] == [("agent", 0.0), ("acpi", 0.0)]
    assert outcome.steps[0].result.startswith("not ready: no-port: ")


async def test_the_power_button_is_pressed_again_until_the_guest_hears_it(autojump_clock: object) -> None:
    qemu = PlayedQemu(presses=3)
    outcome = await shut_down(vm(), qemu.connection, 60)
    assert (outcome.by, outcome.seconds) == ("acpi", 2 * PRESS_EVERY)


async def test_quit_comes_within_the_deadline_though_qemu_does_not_answer_it(autojump_clock: object) -> None:
    qemu = PlayedQemu()
    outcome = await shut_down(vm(), qemu.connection, 18)
    assert (outcome.by, outcome.seconds) == ("quit", 16.0)
    assert outcome.steps[1].result == "did not end QEMU within 16 s"
    assert qemu.commands[-1] == "quit"


async def test_a_qemu_that_ends_by_nothing_is_an_error_that_tells_all_steps(autojump_clock: object) -> None:
    start = trio.current_time()
    with pytest.raises(
        CallTimeout, match=r"QEMU still runs after 9 s: agent: not ready: .*; acpi: .*; quit: "
    ) as e:
        await end_vm(vm(), PlayedQemu(quits=False).connection, 9)
    assert trio.current_time() - start == 9
    assert "quit: did not end QEMU within 9 s" in str(e.value)


async def shut_down_with(
    registry: Registry, qemu: PlayedQemu, *, paused: bool = False
) -> list[tuple[str, float]]:
    host = vm()
    host.link.hint(LinkEvent.PORT_OPENED, "test")
    async with linked(cast(Link, host.link), make_link(Role.GUEST, registry)):
        if paused:
            host.pause("stopped")
        outcome = await shut_down(host, qemu.connection, 90)
    return [(step.means, step.seconds) for step in outcome.steps]


async def test_an_agent_that_hangs_costs_one_call(autojump_clock: object) -> None:
    registry = Registry()

    @registry.method("va.shutdown")
    async def hang(call: Call, mode: str) -> None:
        await trio.sleep_forever()

    assert await shut_down_with(registry, PlayedQemu(presses=1)) == [
        ("agent", CALL_TIMEOUT),
        ("acpi", CALL_TIMEOUT),
    ]


async def test_an_agent_that_does_it_is_the_only_one_asked(autojump_clock: object) -> None:
    registry = Registry()
    qemu = PlayedQemu()

    @registry.method("va.shutdown")
    async def shutdown(call: Call, mode: str) -> None:
        assert mode == "powerdown"
        qemu.end()

    assert await shut_down_with(registry, qemu) == [("agent", 0.0)]
    assert qemu.commands == []


async def test_a_stopped_vm_s_agent_is_not_waited_for(autojump_clock: object) -> None:
    assert await shut_down_with(Registry(), PlayedQemu(presses=1), paused=True) == [
        ("agent", 0.0),
        ("acpi", 0.0),
    ]
