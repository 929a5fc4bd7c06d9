"""Rows, and what is made of them: the table, and build/bench.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .goals import GOALS
from .samples import Samples

#: What is printed in front of a number that there is not.
NONE = "-"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        place: ``native`` or ``guest``.
        case: what was done.
        unit: of the numbers.
        ours: virtagent's.
        theirs: qemu-ga's; none where it has nothing like it.
        figure: what the goal is about.
        note: what one should know who reads this row.
        failed: whether the case failed; the note says how.
    """

    place: str
    case: str
    unit: str = ""
    ours: Samples | None = None
    theirs: Samples | None = None
    figure: float | None = None
    note: str = ""
    failed: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours : theirs, of medians."""
        if self.ours is None or self.theirs is None or not self.theirs.median:
            return None
        return self.ours.median / self.theirs.median

    @property
    def verdict(self) -> str:
        """How the row does by its goal; empty if there is none."""
        goal = GOALS.get((self.place, self.case))
        if goal is None:
            return ""
        value = self.figure if self.figure is not None else self.ratio
        return NONE if value is None else goal.verdict(value)

    @property
    def goal(self) -> str:
        """The goal, in words."""
        goal = GOALS.get((self.place, self.case))
        return "" if goal is None else str(goal)

    def to_json(self) -> dict[str, object]:
        """Return everything there is to know."""
        return {
            "place": self.place,
            "case": self.case,
            "unit": self.unit,
            "virtagent": _numbers(self.ours),
            "qemu-ga": _numbers(self.theirs),
            "ratio": self.ratio,
            "figure": self.figure,
            "goal": self.goal,
            "verdict": self.verdict,
            "note": self.note,
            "failed": self.failed,
        }


def _numbers(samples: Samples | None) -> dict[str, object] | None:
    if samples is None:
        return None
    return {"median": samples.median, "p99": samples.p99, "count": len(samples.values)}


def table(rows: list[Row]) -> str:
    """Return the table."""
    head = [
        "place",
        "case",
        "unit",
        "virtagent",
        "p99",
        "qemu-ga",
        "p99",
        "ratio",
        "must / aim",
        "met",
        "note",
    ]
    lines = [head, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return "\n".join(_aligned(line, widths) for line in lines)


def cells(row: Row) -> list[str]:
    """Return a row of the table."""
    ours, theirs = (
        [_number(s.median), _number(s.p99)] if s else [NONE, NONE] for s in (row.ours, row.theirs)
    )
    value = row.figure if row.figure is not None else row.ratio
    return [row.place, row.case, row.unit, *ours, *theirs, _number(value), row.goal, row.verdict, row.note]


def _aligned(cells: list[str], widths: list[int]) -> str:
    # Words to the left, numbers to the right.
    padded: Iterator[str] = (
        cell.rjust(width) if 3 <= column <= 7 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=False))
    )
    return "  ".join([*padded, cells[-1]]).rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write(rows: list[Row], path: Path, **about: object) -> None:
    """Write build/bench.json: the rows, when and on what they were measured."""
    document = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg(), "kernel": platform.release()},
        "python": sys.version.split()[0],
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        **about,
        "rows": [row.to_json() for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _first_line(*command: str) -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    return output.partition("\n")[0]
