"""Random faults for a long time, on a link between processes and on a guest, both at once (`make soak`).

    SOAK_SECONDS=1200 FAULT_SEED=1 python -m tests.faults.soak

Each stage has one of its faults, waits until it is ready again, has a while of peace, and so on. The figures
go where those of the fault suite go; what is not as it should be ends the run with an error.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from tests.faults.guest import GuestStage, Machine, on_guest
from tests.faults.ledger import BRIDGE_CLOSED, NOT_READY, RESET, SEED, TIMED_OUT, Ledger, resident_kib
from tests.faults.stage import ProcessStage, Stage, processes
from tests.faults.test_bytes import NO_SENSE, harm_once
from tests.faults.wire import Harm, Way
from virtagent_host.qemu.devices import CHARDEV_ID

SECONDS = float(os.environ.get("SOAK_SECONDS", "1200"))
#: Seconds of peace between two faults, at most.
PEACE = 3.0
#: Seconds that something is stopped, at most: some are longer than a call's deadline.
STOPPED = 3.0

Fault = Callable[[], Awaitable[None]]


def process_faults(stage: ProcessStage) -> dict[str, Fault]:
    """Return what can be done to a link between processes; the agent asks for checksums."""

    async def agent_killed() -> None:
        stage.agent.send_signal(signal.SIGKILL)

    async def host_killed() -> None:
        stage.service.kill()
        stage.start_host()

    async def host_reconnects() -> None:
        stage.wire.cut_host()

    async def agent_reconnects() -> None:
        stage.wire.cut_guest()

    async def agent_stopped() -> None:
        stage.agent.send_signal(signal.SIGSTOP)
        await trio.sleep(stage.chance.uniform(0, STOPPED))
        stage.agent.send_signal(signal.SIGCONT)

    async def nobody_reads() -> None:
        stage.wire.stall(*Way)
        await trio.sleep(stage.chance.uniform(0, STOPPED))
        stage.wire.flow()

    async def byte_changed() -> None:
        await harm_once(stage, stage.chance.choice(list(Harm)))

    faults = (agent_killed, host_killed, host_reconnects, agent_reconnects, agent_stopped, nobody_reads)
    return {fault.__name__: fault for fault in (*faults, byte_changed)}


def guest_faults(stage: GuestStage) -> dict[str, Fault]:
    """Return what can be done to a guest that keeps running."""

    async def agent_killed() -> None:
        await stage.in_guest("systemctl kill -s KILL va-guest")

    async def host_killed() -> None:
        stage.service.kill()
        stage.service = stage.lab.start("attach", "--qmp", str(stage.vm.qmp_path))

    async def vm_stopped() -> None:
        await stage.vm.qmp("stop")
        await trio.sleep(stage.chance.uniform(0, STOPPED))
        await stage.vm.qmp("cont")

    async def port_replugged() -> None:
        async with stage.observer() as client:
            await stage.unplug(client)
            await stage.plug_in(client, CHARDEV_ID)

    async def guest_reset() -> None:
        end_of_log = stage.vm.log_size()
        await stage.vm.qmp("system_reset")
        await stage.vm.spoken(after=end_of_log)

    # A reset takes as long as ten of the others.
    often = (agent_killed, host_killed, vm_stopped, port_replugged)
    return {fault.__name__: fault for fault in (*often, guest_reset)}


async def soak(stage: Stage, faults: dict[str, Fault], until: float) -> None:
    """Have faults until a time, and account for them."""
    ledger = stage.ledger
    had: Counter[str] = Counter()
    least = most = resident_kib(stage.service.pid)
    while time.monotonic() < until:
        await trio.sleep(stage.chance.uniform(0, PEACE))
        name = stage.chance.choice([*faults])
        print(f"{ledger.name}: {name}", flush=True)
        begun = time.monotonic()
        await faults[name]()
        had[name] += 1
        ledger.times += 1
        await stage.ready_again()
        ledger.again.append(time.monotonic() - begun)
        resident = resident_kib(stage.service.pid)
        least, most = min(least, resident), max(most, resident)
    ledger.growth = most - least
    ledger.notes.append(", ".join(f"{name.replace('_', ' ')} {times}" for name, times in sorted(had.items())))


async def soak_processes(directory: Path, until: float) -> None:
    """Soak a link between processes."""
    fits = (TIMED_OUT, NOT_READY, RESET, BRIDGE_CLOSED, NO_SENSE)
    ledger = Ledger("soak-processes", "a link between processes, with checksums", "soak", fits)
    async with processes(directory, ledger, crc=True) as stage:
        await soak(stage, process_faults(stage), until)


async def soak_guest(directory: Path, until: float) -> None:
    """Soak a guest."""
    ledger = Ledger("soak-guest", "a guest", "soak", (TIMED_OUT, NOT_READY, RESET, BRIDGE_CLOSED))
    machine = Machine(directory)
    try:
        await machine.boot()
        await machine.install()
        async with on_guest(machine, ledger) as stage:
            await soak(stage, guest_faults(stage), until)
    finally:
        machine.stop()


async def main() -> None:
    """Soak both for SECONDS."""
    print(f"soak: {SECONDS:g} s, seed {SEED}")
    until = time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        async with trio.open_nursery() as nursery:
            for part in (soak_processes, soak_guest):
                directory = Path(name, part.__name__)
                directory.mkdir()
                nursery.start_soon(part, directory, until)
    print("soak: every call has ended as it should")


if __name__ == "__main__":
    sys.exit(trio.run(main))
