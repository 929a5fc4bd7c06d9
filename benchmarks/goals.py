"""What the speed must be, and what it should be: the table of issue 4."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        must: the least that is acceptable.
        aim: what is hoped for.
        rising: whether more is better.
    """

    must: float
    aim: float
    rising: bool

    def verdict(self, value: float) -> str:
        """Return ``aim``, ``must``, or ``MISSED``: the best of them that *value* reaches."""
        for word, bound in (("aim", self.aim), ("must", self.must)):
            if value >= bound if self.rising else value <= bound:
                return word
        return "MISSED"

    def __str__(self) -> str:
        sign = "≥" if self.rising else "≤"
        return f"{sign} {self.must:g} / {sign} {self.aim:g}"


def _at_most(must: float, aim: float) -> Goal:
    return Goal(must, aim, rising=False)


def _at_least(must: float, aim: float) -> Goal:
    return Goal(must, aim, rising=True)


#: (place, case) → goal. For most it is about the ratio va-guest : qemu-ga, for the others about the
#: figure of the row (`results.Row`).
GOALS = {
    ("guest", "ping"): _at_most(1.5, 1.0),
    ("guest", "file read"): _at_least(8, 12),
    ("guest", "file read : raw port"): _at_least(0, 0.7),
    ("guest", "file write"): _at_least(15, 30),
    ("native", "ping"): _at_most(4, 2.5),
    ("native", "file read"): _at_least(5, 8),
    ("native", "file write"): _at_least(5, 8),
    ("guest", "ping under load, p99 : idle p50"): _at_most(10, 4),
    ("guest", "va-host ping, whole process"): _at_most(150, 80),
    ("native", "va-host ping, whole process"): _at_most(150, 80),
    ("native", "agent memory"): _at_most(35, 25),
}
