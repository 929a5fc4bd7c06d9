"""Files, small and large."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..clients import ClientError
from ..places import NAME, Place
from ..plan import MIB, Plan
from ..results import Row
from ..samples import Samples, in_turns, timed
from .pings import micro

#: Bytes in a request of qemu-ga: it takes 48 MiB at most, in a write less. The bench finds which is quickest.
CHUNKS = (256 * 1024, MIB, 4 * MIB, 16 * MIB, 32 * MIB)
#: Bytes moved to try one.
TRIAL = 4 * MIB

_GB = 1e9
Work = Callable[[], object]


def small(place: Place, plan: Plan) -> Iterator[Row]:
    """A file of 4 KiB."""
    path = place.make_file("small", 4096)

    def check(data: bytes) -> None:
        if len(data) != 4096:
            raise ClientError(f"the file of 4096 bytes came with {len(data)}")

    measures = {
        "ours": lambda: timed(lambda: check(place.bridge.read_file(path))),
        "theirs": lambda: timed(lambda: check(place.qga.read_file(path))),
    }
    taken = in_turns(plan.rounds, measures, each=max(1, plan.each // 4))
    note = "va_viewfile; qemu-ga: open, read, close"
    yield Row(
        place.name, "4 KiB file, by va-host", "µs", micro(taken["ours"]), micro(taken["theirs"]), note=note
    )


def large(place: Place, plan: Plan) -> Iterator[Row]:
    """A large file each way: `va-host cp`, qemu-ga at its best chunk, and dd on a bare port."""
    there, remote = place.make_file("large", plan.file_size), f"{place.files}/copied"
    part_there = place.make_file("part", plan.rival_size)
    here, part_here, sink = (place.scratch / name for name in ("large", "part", "sink"))
    _fill(here, plan.file_size)
    _fill(part_here, plan.rival_size)
    # A copy takes the place of the one before when it is whole. With both there at once, what is measured
    # would be how long the machine takes to find memory: so that one is removed, and made again as the rival
    # makes it.
    sink.touch()

    def get(size: int, chunk: int) -> None:
        place.qga.get(part_there, sink, size, chunk)
        _same_size(sink, size)

    def put(size: int, chunk: int) -> None:
        place.qga.put(part_here, remote, size, chunk)

    def ours_get() -> None:
        sink.unlink()
        _copy(place, f"{NAME}:{there}", str(sink))
        _same_size(sink, plan.file_size)

    def ours_put() -> None:
        _copy(place, str(here), f"{NAME}:{remote}")

    def raw_get() -> None:
        place.raw_read(there, plan.file_size)

    def raw_put() -> None:
        place.raw_write(plan.file_size)

    directions = {"file read": (ours_get, get, raw_get), "file write": (ours_put, put, raw_put)}
    for name, (ours, theirs, raw) in directions.items():
        chunk = _best_chunk(plan, theirs)
        works: dict[str, tuple[int, Work]] = {
            "ours": (plan.file_size, ours),
            "theirs": (plan.rival_size, partial(theirs, plan.rival_size, chunk)),
        }
        if place.has_raw_port:
            works["raw"] = (plan.file_size, raw)
        yield from _rows(place, plan, name, f"qemu-ga by {chunk // 1024} KiB", works)
    place.shell(f"rm -f {there} {part_there} {remote}")
    for path in (here, part_here, sink):
        path.unlink()


def _rows(
    place: Place, plan: Plan, name: str, note: str, works: dict[str, tuple[int, Work]]
) -> Iterator[Row]:
    spent: dict[str, Counter[str]] = {who: Counter() for who in works}

    def rate(who: str) -> float:
        size, work = works[who]
        before = place.cpu()
        seconds = timed(work)
        spent[who].update({name: cpu - before[name] for name, cpu in place.cpu().items()})
        return size / 1e6 / seconds

    taken = in_turns(plan.file_rounds, {who: partial(rate, who) for who in works}, rising=True)
    ours, theirs, raw = taken["ours"], taken["theirs"], taken.get("raw")
    yield Row(place.name, name, "MB/s", ours, theirs, note=note)
    if raw is not None:
        share = ours.median / raw.median
        note = "the raw port (dd) in qemu-ga's column"
        yield Row(place.name, f"{name} : raw port", "MB/s", ours, raw, figure=share, note=note)

    def cost(who: str, process: str) -> Samples | None:
        moved = works[who][0] * plan.file_rounds
        return Samples([spent[who][process] / moved * _GB]) if process in spent[who] else None

    yield Row(place.name, f"{name}, CPU of va-host", "s/GB", cost("ours", "va-host"))
    yield Row(
        place.name, f"{name}, CPU of agent", "s/GB", cost("ours", "va-guest"), cost("theirs", "qemu-ga")
    )
    if place.has_raw_port:
        yield Row(
            place.name,
            f"{name}, CPU of QEMU",
            "s/GB",
            cost("ours", "qemu"),
            cost("theirs", "qemu"),
            note="the whole guest's",
        )


def _best_chunk(plan: Plan, work: Callable[[int, int], None]) -> int:
    """Return the chunk that qemu-ga is quickest with."""

    def pace(chunk: int) -> float:
        size = max(chunk, min(TRIAL, plan.rival_size))
        return timed(lambda: work(size, chunk)) / size

    return min((chunk for chunk in CHUNKS if chunk <= plan.rival_size), key=pace)


def _copy(place: Place, source: str, destination: str) -> None:
    subprocess.run(place.va_host("cp", source, destination), check=True, stdout=subprocess.DEVNULL)


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - at)))


def _same_size(path: Path, size: int) -> None:
    if path.stat().st_size != size:
        raise ClientError(f"{path} has {path.stat().st_size} bytes, not {size}")
