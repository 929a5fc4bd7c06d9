"""Faults of a real guest and its QEMU. The tests share one guest, and come in an order that it survives.

Each leaves the guest running, with its agent ready; the last one ends it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.faults.guest import GuestStage, Machine, on_guest
from tests.faults.ledger import BRIDGE_CLOSED, LONG, NOT_READY, RESET, TIMED_OUT, Ledger
from tests.faults.stage import LOOK_EVERY
from tests.guest.lab import BridgeError, Lab
from tests.guest.qemu import accelerator
from tests.guest.vm import Vm
from virtagent_host.qemu.devices import CHARDEV_ID

#: Repetitions of what takes seconds, and of what takes a boot.
SOME = 20 if LONG else 2
FEW = 3 if LONG else 1
#: Seconds that the VM is stopped.
STOPPED = 60.0 if LONG else 5.0
#: Seconds for a QEMU to migrate, save or load; for a va-host to notice that its QEMU is gone.
SOON = 60.0

EXIT_BROKEN = 6


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The guest, booted."""
    machine = Machine(tmp_path_factory.mktemp("faults"))
    try:
        trio.run(machine.boot)
        trio.run(machine.install)
        yield machine
    finally:
        machine.stop()


def ledger_for(name: str, what: str, *fits: str) -> Ledger:
    return Ledger(name, what, "guest", (TIMED_OUT, *fits))


async def test_an_agent_that_is_killed_under_systemd(machine: Machine) -> None:
    ledger = ledger_for(
        "guest-agent-killed", "agent killed by SIGKILL; systemd restarts it after 2 s", RESET, NOT_READY
    )
    async with on_guest(machine, ledger) as stage:

        async def fault() -> None:
            await stage.in_guest("systemctl kill -s KILL va-guest")

        await stage.repeat(fault, times=SOME, new_session=True)


async def test_a_vm_that_is_stopped_and_continued(machine: Machine) -> None:
    ledger = ledger_for("vm-stopped", f"VM stopped for {STOPPED:g} s, then continued")
    async with on_guest(machine, ledger) as stage:
        session = (await stage.status())["session"]

        async def fault() -> None:
            await stage.vm.qmp("stop")
            await stage.until(lambda status: status["state"] == "paused")
            # As long as it takes: nothing may happen meanwhile.
            with trio.move_on_after(STOPPED):
                status = await stage.until(lambda status: status["state"] != "paused", STOPPED + SOON)
                pytest.fail(f"a stopped VM is {status['state']}: {status['reason']}")
            await stage.vm.qmp("cont")

        await stage.repeat(fault, times=FEW)
        ledger.again = [seconds - STOPPED for seconds in ledger.again]
        status = await stage.status()
        assert status["session"] == session
        assert status["figures"]["resets"] == 0


async def test_a_guests_clock_that_is_stepped(machine: Machine) -> None:
    ledger = ledger_for("guest-clock", "the guest's wall clock stepped by a year, and back")
    async with on_guest(machine, ledger) as stage:
        session = (await stage.status())["session"]
        steps = iter(["+1 year", "-1 year"] * SOME)

        async def fault() -> None:
            await stage.in_guest(f"date --set '{next(steps)}'")

        await stage.repeat(fault, times=2)
        assert (await stage.status())["session"] == session


async def test_a_port_that_is_unplugged_and_plugged_in_again(machine: Machine) -> None:
    ledger = ledger_for("port-replugged", "port unplugged, then plugged in again", RESET, NOT_READY)
    async with on_guest(machine, ledger) as stage:

        async def fault() -> None:
            async with stage.observer() as client:
                await stage.unplug(client)
                status = await client.execute("va_status")
                assert status["reason"].startswith("the port was unplugged: plug one in again"), status
                await stage.plug_in(client, CHARDEV_ID)

        await stage.repeat(fault, times=SOME, new_session=True)


async def test_a_chardev_that_is_removed_and_another_in_its_place(machine: Machine) -> None:
    ledger = ledger_for(
        "chardev-removed", "chardev removed under va-host; port back on another one", RESET, NOT_READY
    )
    async with on_guest(machine, ledger) as stage:
        number = 0

        async def fault() -> None:
            nonlocal number
            number += 1
            chardev = (await stage.status())["chardev"]
            async with stage.observer() as client:
                # QEMU protects what is in use.
                with pytest.raises(BridgeError, match="busy"):
                    await client.execute("chardev-remove", id=chardev)
                await stage.unplug(client)
                await client.execute("chardev-remove", id=chardev)
                path = stage.lab.runtime / f"other{number}"
                await client.execute(
                    "chardev-add",
                    id=f"other{number}",
                    backend={
                        "type": "socket",
                        "data": {"addr": {"type": "unix", "data": {"path": str(path)}}, "wait": False},
                    },
                )
                await stage.plug_in(client, f"other{number}")

        await stage.repeat(fault, times=SOME, new_session=True)
        assert (await stage.status())["chardev"] == f"other{number}"


async def test_a_guest_that_wakes_up_in_an_old_session(machine: Machine) -> None:
    ledger = ledger_for(
        "loadvm", "savevm, a new session, more calls, loadvm", RESET, NOT_READY, BRIDGE_CLOSED
    )
    async with on_guest(machine, ledger) as stage:
        await monitor(stage.vm, "savevm fault")

        async def fault() -> None:
            # A new session, of which the guest will know nothing.
            before = (await stage.status())["session"]
            stage.service.kill()
            stage.service = stage.lab.start("attach", "--qmp", str(stage.vm.qmp_path))
            status = await stage.ready_again(before)
            await until_answered(stage, 10)
            loaded_at = time.monotonic()
            await monitor(stage.vm, "loadvm fault")
            # The sign that it woke up there: it speaks in a session that is over.
            await stage.until(lambda now: dropped(now) > dropped(status))
            await stage.ready_again()
            again.append(time.monotonic() - loaded_at)

        again: list[float] = []
        await stage.repeat(fault, times=FEW)
        ledger.again = again
        await monitor(stage.vm, "delvm fault")


async def test_a_guest_that_migrates_to_another_qemu(machine: Machine) -> None:
    # QEMU 7.2's TCG loses some of what a guest writes while it migrates: now and then one came out with a
    # corrupted kernel stack, and panicked. So there it is stopped first.
    live = accelerator() == "kvm"
    how = "live" if live else "stopped"
    ledger = ledger_for(
        "migrated", f"{how} migration to a second QEMU, a va-host on each side", RESET, NOT_READY
    )
    away = "the VM was migrated away: another QEMU runs it now"
    async with on_guest(machine, ledger, lasts=False) as stage:
        source = stage.vm
        address = f"unix:{machine.directory / 'migration'}"
        target = machine.another("-incoming", address)
        await trio.to_thread.run_sync(target.start)
        lab = Lab(target.directory, "target")
        try:
            async with lab.attached(target), lab.client() as client:
                assert (await lab.wait("paused"))["reason"] == "QEMU is in state 'inmigrate'"
                if not live:
                    await source.qmp("stop")
                await source.qmp("migrate", uri=address)
                with trio.fail_after(SOON):
                    while (info := await source.qmp("query-migrate")).get("status") != "completed":
                        assert info.get("status") != "failed", info
                        await trio.sleep(LOOK_EVERY)
                migrated_at = time.monotonic()
                if not live:
                    await target.qmp("cont")
                await lab.ready()
                await lab.succeed("ping")
                ledger.times = 1
                ledger.again.append(time.monotonic() - migrated_at)
                resumed = await client.event("VA_GUEST_RESUMED")
                assert (resumed["cause"], resumed["reseeded"]) == ("migration", True), resumed
                ledger.notes.append(f"downtime {info['downtime']} ms, {info['ram']['transferred'] >> 20} MiB")
                # What the source's users are told, at once.
                await stage.until(lambda status: status["reason"] == away)
                assert f"not ready: paused: {away}" in await stage.lab.fail(4, "ping")
        except BaseException:
            target.stop()
            raise
        machine.vm = target
    await trio.to_thread.run_sync(source.stop)


async def test_a_guest_that_is_rebooted(machine: Machine) -> None:
    ledger = ledger_for("reboot", "guest rebooted", RESET, NOT_READY)
    async with on_guest(machine, ledger) as stage:

        async def fault() -> None:
            await stage.cut_off("systemctl --force reboot" if LONG else "systemctl --force --force reboot")

        await stage.repeat(fault, times=FEW, new_session=True)


@pytest.mark.skipif(not LONG, reason="costs a boot: the next test has a panic, too")
async def test_a_guest_that_panics_and_reboots_itself(machine: Machine) -> None:
    ledger = ledger_for("panic", "guest kernel panics, and reboots by kernel.panic=1", RESET, NOT_READY)
    async with on_guest(machine, ledger) as stage:

        async def fault() -> None:
            # With the driver, QEMU would be told, and it would decide (the next test).
            await stage.in_guest("modprobe -r pvpanic-mmio; sysctl -q kernel.panic=1")
            await stage.cut_off("echo c >/proc/sysrq-trigger")

        await stage.repeat(fault, times=FEW, new_session=True)


async def test_a_guest_whose_panic_stops_the_vm(machine: Machine) -> None:
    ledger = ledger_for("panic-pvpanic", "guest kernel panics, pvpanic stops the VM; reset", RESET, NOT_READY)
    async with on_guest(machine, ledger) as stage:
        await stage.vm.qmp("set-action", panic="pause")

        async def fault() -> None:
            await stage.in_guest("modprobe pvpanic-mmio; sysctl -q kernel.panic=0")
            await stage.cut_off("echo c >/proc/sysrq-trigger")
            await stage.until(lambda status: status["reason"] == "the guest has panicked")
            assert "not ready: paused: the guest has panicked" in await stage.lab.fail(4, "ping")
            begun.append(time.monotonic())
            end_of_log = stage.vm.log_size()
            await stage.vm.qmp("system_reset")
            await stage.vm.qmp("cont")
            await stage.vm.spoken(after=end_of_log)

        begun: list[float] = []
        started = time.monotonic()
        await stage.repeat(fault, times=1, new_session=True)
        ledger.again = [ledger.again[0] - (begun[0] - started)]
        ledger.notes.append("ready again: after the reset")
        assert any("the guest has panicked" in reason for reason in ledger.reasons), ledger.reasons


async def test_a_qemu_that_is_killed(machine: Machine) -> None:
    what = "QEMU killed by SIGKILL: va-host says so, and ends with status 6"
    ledger = ledger_for("qemu-killed", what, RESET, NOT_READY, BRIDGE_CLOSED)
    async with on_guest(machine, ledger, lasts=False) as stage:
        await until_answered(stage, 20)
        begun = time.monotonic()
        await kill(machine.vm)
        ledger.times = 1
        assert await stage.service.ended() == EXIT_BROKEN
        ledger.notes.append(f"va-host ended {time.monotonic() - begun:.1f} s later")
        assert "it crashed or was killed" in stage.service.said


async def test_a_qemu_that_comes_back_is_waited_for(machine: Machine) -> None:
    what = "QEMU killed, attach --retry waits for the next one at the same monitor"
    ledger = ledger_for("qemu-comes-back", what, RESET, NOT_READY)
    machine.vm = machine.another()

    begun = 0.0

    async def boot_when_awaited() -> None:
        nonlocal begun
        status = await Lab(machine.directory / ledger.name).wait("no-port")
        assert status["reason"].startswith(f"waiting for QEMU: {machine.vm.qmp_path}: "), status
        begun = time.monotonic()
        await trio.to_thread.run_sync(machine.vm.start)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(boot_when_awaited)
        async with on_guest(machine, ledger, "--retry") as stage:
            ledger.times = 1
            ledger.again.append(time.monotonic() - begun)
            # The short form has seen it wait already, for the boot.
            for _ in range(FEW if LONG else 0):
                begun = time.monotonic()
                await kill(machine.vm)
                status = await stage.until(lambda status: status["state"] == "no-port")
                assert (
                    status["reason"].startswith("waiting for QEMU: ") or "cannot connect" in status["reason"]
                )
                await trio.to_thread.run_sync(machine.vm.start)
                ledger.times += 1
                await stage.ready_again()
                ledger.again.append(time.monotonic() - begun)


async def test_a_guest_that_is_powered_off(machine: Machine) -> None:
    what = "guest powered off: QEMU ends, and va-host with status 0"
    ledger = ledger_for("powered-off", what, RESET, NOT_READY, BRIDGE_CLOSED)
    async with on_guest(machine, ledger, lasts=False) as stage:
        await until_answered(stage, 20)
        await stage.cut_off("systemctl --force poweroff")
        ledger.times = 1
        assert await stage.service.ended(SOON) == 0
        assert "QEMU has ended (guest-shutdown)" in stage.service.said


def dropped(status: dict[str, Any]) -> int:
    """Return how many messages of another session the host has dropped."""
    return int(status["figures"]["drops"].get("session", 0))


async def until_answered(stage: GuestStage, count: int) -> None:
    """Wait until so many more calls were answered: others are in flight."""
    wanted = stage.ledger.answered + count
    with trio.fail_after(SOON):
        while stage.ledger.answered < wanted:
            await trio.sleep(LOOK_EVERY)


async def monitor(vm: Vm, command: str) -> None:
    """Give a command to QEMU's human monitor, which answers nothing if all is well."""
    answer = await vm.qmp("human-monitor-command", **{"command-line": command})
    assert not answer.strip(), answer


async def kill(vm: Vm) -> None:
    """End QEMU by SIGKILL."""
    os.kill(vm.pid, signal.SIGKILL)
    await vm.wait_exit(SOON)
