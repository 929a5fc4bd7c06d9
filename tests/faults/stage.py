"""What a fault is done to: a va-host, an agent, and calls in both directions all the time.

`Stage` knows how to watch a bridge for "ready again". `processes` puts one up without a VM: va-host and the
agent are real processes on unix sockets, with a `Wire` of the test's between them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.faults.callers import Callers, Known
from tests.faults.ledger import REPEAT, SEED, Ledger, resident_kib
from tests.faults.wire import Wire
from tests.guest.lab import BridgeClient, BridgeError, Lab, LabError, Service

ROOT = Path(__file__).parents[2]
AGENT = Path(__file__).with_name("agent.py")

#: Seconds for anything to be ready again: a reboot under TCG on a busy machine.
AGAIN_WITHIN = 300.0
#: Seconds between two looks at what sends no event.
LOOK_EVERY = 0.02
#: Seconds until a dead agent is started again: by its supervisor, as systemd would.
RESTART_AFTER = 0.05
#: Seconds of the pause before a fault, at most: it comes at a random moment of the calls.
RANDOM_MOMENT = 0.15
#: Repetitions before memory is measured for the first time, where there are more: caches and arenas fill.
WARM_UP = 2


class Stage:
    """A va-host whose guest's agent is there, and the account of what is done to it.

    Args:
        lab: the runtime directory and name of the va-host.
        service: the va-host process.
        known: a file that the guest has.
        ledger: the account.
    """

    def __init__(self, lab: Lab, service: Service, known: Known, ledger: Ledger) -> None:
        self.lab = lab
        self.service = service
        self.known = known
        self.ledger = ledger
        self.chance = random.Random(f"{SEED} {ledger.name}")
        #: Process id and resident memory, early on.
        self._resident: tuple[int, int] | None = None

    def calls(self) -> Any:
        """Return a context in which the bridge's clients call all the time."""
        return Callers(self.lab.bridge, self.known, self.ledger).at_work()

    async def status(self) -> dict[str, Any]:
        """Return `va_status` as soon as a va-host answers it."""
        async with self.observer() as client:
            status = await client.execute("va_status")
        assert isinstance(status, dict)
        return status

    @asynccontextmanager
    async def observer(self) -> AsyncIterator[BridgeClient]:
        """Connect to the bridge, to look, as soon as there is one."""
        async with self.lab.client() as client:
            yield client

    async def until(
        self, wanted: Callable[[dict[str, Any]], bool], timeout: float = AGAIN_WITHIN
    ) -> dict[str, Any]:
        """Wait until the status is wanted, whatever happens to va-host meanwhile, and return it."""
        status: dict[str, Any] = {}
        with trio.move_on_after(timeout):
            while True:
                try:
                    async with self.observer() as client:
                        while True:
                            status = await client.execute("va_status")
                            if wanted(status):
                                return status
                            await trio.sleep(LOOK_EVERY)
                except (LabError, OSError, trio.BrokenResourceError):
                    await trio.sleep(LOOK_EVERY)
        raise LabError(
            f"not within {timeout} s; at last the status was {status}\n{self.service.said[-3000:]}"
        )

    async def ready_again(self, session: str | None = None) -> dict[str, Any]:
        """Wait until the guest answers, in another session than this one; return the status then."""
        deadline = time.monotonic() + AGAIN_WITHIN
        while True:
            status = await self.until(lambda now: now["state"] == "ready" and now["session"] != session)
            try:
                async with self.observer() as client:
                    await client.execute("va_ping", timeout=1)
                return status
            except (BridgeError, LabError, OSError, trio.BrokenResourceError):
                # The state is as of its last news; only an answer proves it.
                assert time.monotonic() < deadline, f"ready, but no answer: {status}"

    async def repeat(
        self, fault: Callable[[], Awaitable[None]], *, times: int = REPEAT, new_session: bool = False
    ) -> None:
        """Do a fault again and again, and each time await what it does not need anybody's help for.

        Args:
            fault: does it, and returns when it is done.
            times: how often.
            new_session: whether the fault ends the session, so that only another one is "again".
        """
        for number in range(times):
            await trio.sleep(self.chance.uniform(0, RANDOM_MOMENT))
            before = (await self.status())["session"] if new_session else None
            begun = time.monotonic()
            if number == min(WARM_UP, times - 1):
                self._resident = self.service.pid, resident_kib(self.service.pid)
            await fault()
            self.ledger.times += 1
            await self.ready_again(before)
            self.ledger.again.append(time.monotonic() - begun)

    async def close_account(self) -> None:
        """Take the last figures of va-host into the account."""
        self.ledger.drops.update((await self.status())["figures"]["drops"])
        if self._resident is not None and self._resident[0] == self.service.pid:
            self.ledger.growth = resident_kib(self.service.pid) - self._resident[1]


class Agent:
    """The agent as a process, started again whenever it ends."""

    def __init__(self, directory: Path, *, crc: bool) -> None:
        self.socket = directory / "agent.sock"
        self.log = directory / "agent.log"
        config = directory / "guest.toml"
        config.touch()
        self._command = [
            sys.executable,
            str(AGENT),
            "--config",
            str(config),
            "-c",
            f"unix-listen:{self.socket}",
        ]
        paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "protocol")])
        self._environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "FAULT_CRC": str(int(crc)),
            "FAULT_SEED": str(SEED),
        }
        self._process: trio.Process | None = None

    async def run(self) -> None:
        """Supervise it until cancelled."""
        while True:
            with self.log.open("ab") as log:
                process = await trio.lowlevel.open_process(
                    self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
                )
            self._process = process
            try:
                await process.wait()
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            await trio.sleep(RESTART_AFTER)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def tallies(self) -> list[dict[str, Any]]:
        """Return what its runs counted."""
        return tallies(self.log.read_text(errors="replace"))


def tallies(log: str, start: int = 0) -> list[dict[str, Any]]:
    """Return what the agent counted, run by run, in a log from an offset on.

    A guest that is put back to an earlier state has its totals put back; what it had counted stays counted.
    """
    before: dict[str, dict[str, Any]] = {}
    counted = []
    at = 0
    for line in log.splitlines(keepends=True):
        at += len(line)
        _, found, text = line.partition("calls {")
        if not found:
            continue
        try:
            tally = json.loads("{" + text)
        except ValueError:
            continue  # killed while it wrote the line
        last = before.get(tally["run"], {"answered": 0, "failed": {}, "wrong": [], "hung": []})
        before[tally["run"]] = tally
        if at > start:
            failed = {reason: n - last["failed"].get(reason, 0) for reason, n in tally["failed"].items()}
            counted.append(
                {
                    "answered": max(0, tally["answered"] - last["answered"]),
                    "failed": {reason: n for reason, n in failed.items() if n > 0},
                    "wrong": tally["wrong"][len(last["wrong"]) :],
                    "hung": tally["hung"][len(last["hung"]) :],
                }
            )
    return counted


class ProcessStage(Stage):
    """A stage without a VM; see `processes`.

    Attributes:
        wire: between va-host and agent.
        agent: the agent.
    """

    wire: Wire
    agent: Agent

    def start_host(self) -> None:
        """Start va-host; the one before must have ended."""
        self.service = self.lab.start("attach", "--channel", f"unix:{self.wire.path}")


@asynccontextmanager
async def processes(directory: Path, ledger: Ledger, *, crc: bool = False) -> AsyncIterator[ProcessStage]:
    """Put up a stage of processes, with calls under way; account for them, and judge them, at its end.

    Args:
        directory: its own.
        ledger: the account.
        crc: whether the agent asks for checksums.
    """
    print(f"seed {SEED}, {REPEAT} repetitions")
    known = Known.make(str(directory / "known"))
    Path(known.path).write_bytes(known.content)
    agent = Agent(directory, crc=crc)
    lab = Lab(directory)
    wire = Wire(directory / "wire.sock", agent.socket)
    async with trio.open_nursery() as nursery:
        await nursery.start(wire.run)
        nursery.start_soon(agent.run)
        service = lab.start("attach", "--channel", f"unix:{wire.path}")
        stage = ProcessStage(lab, service, known, ledger)
        stage.wire, stage.agent = wire, agent
        try:
            await stage.ready_again()
            async with stage.calls():
                yield stage
            await stage.close_account()
        except BaseException:
            print(f"{stage.service.log}:\n{stage.service.said[-3000:]}")
            raise
        finally:
            # Before va-host is killed, for what that does to calls under way is not this fault's doing.
            ledger.add_agents(agent.tallies())
            stage.service.kill()
            ledger.write()
        nursery.cancel_scope.cancel()
    ledger.check()
