"""Faults of the ends and of the wire between them: va-host and agent are processes on unix sockets."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import trio

from tests.faults.ledger import BRIDGE_CLOSED, LONG, NOT_READY, REPEAT, RESET, TIMED_OUT, Ledger
from tests.faults.stage import LOOK_EVERY, processes
from tests.faults.wire import Damage, Way

#: Seconds of a stop or a stall: longer than many a deadline, shorter than a heartbeat.
STOPPED = 1.5
#: Seconds that the bridge may take for what needs no guest, with a peer that reads nothing.
QUICK = 1.0
#: KiB by which va-host may grow while its peer reads nothing: the queues' bounds, and an allocator's slack.
BOUND = 32 * 1024
#: Bytes from the begin of a message to cut at, and in how many steps: a ping's request and response have 400.
MESSAGE = 400
STEP = 2 if LONG else 80


async def test_an_agent_that_is_killed_at_any_moment(tmp_path: Path) -> None:
    ledger = Ledger(
        "agent-killed",
        "agent killed by SIGKILL; host sees the channel close",
        "processes",
        (RESET, NOT_READY, TIMED_OUT),
    )
    async with processes(tmp_path, ledger) as stage:
        stage.wire.tell = True

        async def fault() -> None:
            stage.agent.send_signal(signal.SIGKILL)

        await stage.repeat(fault, new_session=True)


async def test_an_agent_that_is_killed_unseen(tmp_path: Path) -> None:
    ledger = Ledger(
        "agent-killed-unseen",
        "agent killed by SIGKILL; host sees nothing of it",
        "processes",
        (RESET, NOT_READY, TIMED_OUT),
    )
    async with processes(tmp_path, ledger) as stage:

        async def fault() -> None:
            stage.agent.send_signal(signal.SIGKILL)

        await stage.repeat(fault, new_session=True)


@pytest.mark.parametrize("way", list(Way))
async def test_a_message_that_is_cut_at_any_byte(tmp_path: Path, way: Way) -> None:
    end = "agent" if way is Way.TO_HOST else "host"
    ledger = Ledger(
        f"cut-{end}",
        f"connection cut {STEP}, {2 * STEP}, … bytes into a message, {way.value}",
        "processes",
        (RESET, NOT_READY, TIMED_OUT),
    )
    async with processes(tmp_path, ledger) as stage:
        at = iter(range(0, MESSAGE, STEP))

        async def fault() -> None:
            def cut(data: bytes, index: int) -> bytes:
                # The sender's end goes at once, and what is behind the cut with it.
                nursery.start_soon(cut_soon)
                return data[:index]

            async def cut_soon() -> None:
                (stage.wire.cut_guest if way is Way.TO_HOST else stage.wire.cut_host)()

            damage = stage.wire.harm[way] = Damage(next(at), cut)
            await damage.done.wait()

        async with trio.open_nursery() as nursery:
            await stage.repeat(fault, times=len(range(0, MESSAGE, STEP)), new_session=True)


async def test_a_va_host_that_is_killed_and_started_again(tmp_path: Path) -> None:
    ledger = Ledger(
        "host-killed",
        "va-host killed by SIGKILL and started again",
        "processes",
        (RESET, NOT_READY, TIMED_OUT, BRIDGE_CLOSED),
    )
    async with processes(tmp_path, ledger) as stage:

        async def fault() -> None:
            stage.service.kill()
            stage.start_host()

        await stage.repeat(fault, new_session=True)


async def test_a_hosts_socket_that_is_closed_and_opened_again_at_once(tmp_path: Path) -> None:
    ledger = Ledger(
        "host-reconnects",
        "va-host's socket closed and reopened at once; the guest sees nothing of it",
        "processes",
        (RESET, NOT_READY, TIMED_OUT),
    )
    async with processes(tmp_path, ledger) as stage:

        async def fault() -> None:
            stage.wire.cut_host()

        await stage.repeat(fault, new_session=True)


async def test_an_agent_that_is_stopped_and_continued(tmp_path: Path) -> None:
    ledger = Ledger(
        "agent-stopped", f"agent stopped for {STOPPED} s (SIGSTOP, SIGCONT)", "processes", (TIMED_OUT,)
    )
    async with processes(tmp_path, ledger) as stage:
        session = (await stage.status())["session"]

        async def fault() -> None:
            stage.agent.send_signal(signal.SIGSTOP)
            await trio.sleep(STOPPED)
            stage.agent.send_signal(signal.SIGCONT)

        await stage.repeat(fault, times=min(REPEAT, 30))
        assert (await stage.status())["session"] == session


async def test_a_peer_that_stops_reading(tmp_path: Path) -> None:
    """Neither end reads: what each wants to say piles up until its bounds are reached."""
    ledger = Ledger(
        "peer-does-not-read", "neither end is read for a while", "processes", (TIMED_OUT, NOT_READY)
    )
    # Until the heartbeat has noticed, in the long form: 15 s of silence and 10 s of patience.
    seconds = 30.0 if LONG else 4.0
    async with processes(tmp_path, ledger) as stage:
        session = (await stage.status())["session"]
        slowest = 0.0

        async def fault() -> None:
            nonlocal slowest
            stage.wire.stall(*Way)
            until = time.monotonic() + seconds
            async with stage.observer() as client:
                while time.monotonic() < until:
                    asked = time.monotonic()
                    await client.execute("va_status")
                    slowest = max(slowest, time.monotonic() - asked)
                    await trio.sleep(LOOK_EVERY)
            stage.wire.flow()

        await stage.repeat(fault, times=5 if LONG else 1)
        assert (await stage.status())["session"] == session
        ledger.notes.append(f"va_status took {1000 * slowest:.0f} ms at most")
        assert slowest < QUICK
    assert ledger.growth is not None
    assert ledger.growth < BOUND
