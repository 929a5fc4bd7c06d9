"""Measurements: many of one thing, taken in turns with those of another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Samples:
    """What was measured, in the order in which it was.

    Attributes:
        rising: whether more is better.
    """

    values: list[float] = field(default_factory=list)
    rising: bool = False

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """The value that one in a hundred is worse than, at most; of fewer, the worst."""
        ordered = sorted(self.values, reverse=self.rising)
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds *work* takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turns(
    rounds: int, measures: Mapping[str, Callable[[], float]], *, each: int = 1, rising: bool = False
) -> dict[str, Samples]:
    """Take measurements in turns.

    Args:
        rounds: how often everybody has a turn.
        measures: take one measurement each.
        each: measurements in a turn. Small work wants many: the first after another's turn finds cold caches.
        rising: see `Samples`.
    """
    samples = {name: Samples(rising=rising) for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            for _ in range(each):
                samples[name].values.append(measure())
    return samples
