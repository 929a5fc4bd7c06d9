"""Bytes that are changed on their way: what is lost by it, and that nothing is made up by it.

One byte lost, doubled or inserted changes a length, and shows. One that is flipped may be a digit in a value:
only a checksum shows that, so it is flipped only where there is one. The same holds for changes that outweigh
each other in one message (`Noise`).
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from tests.faults.ledger import LONG, NOT_READY, REPEAT, RESET, TIMED_OUT, Ledger
from tests.faults.stage import ProcessStage, processes
from tests.faults.wire import Damage, Harm, Noise, Way, harmed

#: What a call may be told whose messages were harmed: that there is no answer, or that it makes no sense.
NO_SENSE = r"broken: (?!internal error).*"
#: A request that was harmed may come as another one. It is refused; and its caller is told what was asked.
MISREAD = r"refused: .*"
FITS = (TIMED_OUT, RESET, NOT_READY, NO_SENSE, MISREAD)

#: Bytes to harm one of: a dozen messages, so that any part of one is met.
WITHIN = 40_000
#: In the long form, each has an account of its own.
HARMS = [(harm,) for harm in Harm] if LONG else [tuple(Harm)]
#: Seconds of noise, and one byte in how many is harmed.
NOISE = 20.0 if LONG else 2.0
EVERY = 20_000


async def harm_once(stage: ProcessStage, harm: Harm) -> None:
    """Harm one byte of a random direction, and await that."""
    way = stage.chance.choice(list(Way))
    # Half of them among the first bytes of what comes next: headers are short and bodies are long.
    within = 400 if stage.chance.random() < 0.5 else WITHIN
    damage = Damage(
        stage.chance.randrange(within), lambda data, index: harmed(data, index, harm, stage.chance)
    )
    stage.wire.harm[way] = damage
    await damage.done.wait()


@pytest.mark.parametrize("crc", [False, True], ids=["plain", "checksum"])
@pytest.mark.parametrize("harms", HARMS, ids=" or ".join)
async def test_a_byte_that_is_changed_makes_no_answer_wrong(
    tmp_path: Path, harms: tuple[Harm, ...], crc: bool
) -> None:
    if not crc:
        # A bit that is flipped in a value can only be noticed by a checksum.
        harms = tuple(harm for harm in harms if harm is not Harm.FLIP)
        if not harms:
            pytest.skip("nothing to do without checksums")
    how = "with" if crc else "without"
    names = ", ".join(harms)
    name = "-".join(["byte", *(harms if len(harms) == 1 else ()), "checksum" if crc else "plain"])
    ledger = Ledger(name, f"one byte {names}, {how} checksums", "processes", FITS)
    async with processes(tmp_path, ledger, crc=crc) as stage:
        await stage.repeat(lambda: harm_once(stage, stage.chance.choice(harms)), times=REPEAT * len(harms))


async def test_a_noisy_wire_with_checksums_makes_no_answer_wrong(tmp_path: Path) -> None:
    ledger = Ledger(
        "noise",
        f"bytes lost, doubled, flipped and inserted, one in {EVERY}, with checksums",
        "processes",
        FITS,
    )
    async with processes(tmp_path, ledger, crc=True) as stage:
        noises = [Noise(EVERY, tuple(Harm), stage.chance) for _ in Way]

        async def fault() -> None:
            stage.wire.harm = dict(zip(Way, noises, strict=True))
            await trio.sleep(NOISE)
            stage.wire.harm = dict.fromkeys(Way, bytes)
            ended.append(time.monotonic())

        ended: list[float] = []
        await stage.repeat(fault, times=3)
        ledger.again = [seconds - NOISE for seconds in ledger.again]
        ledger.notes.append(f"{sum(noise.count for noise in noises)} bytes harmed")
    assert sum(noise.count for noise in noises) > 0
    assert ledger.drops.total() > 0
