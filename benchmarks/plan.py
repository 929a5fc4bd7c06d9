"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """Sizes and counts.

    Attributes:
        rounds: turns of each agent, for small work.
        each: small things done in a turn.
        file_rounds: turns of each agent, for a large file.
        file_size: bytes of a large file.
        rival_size: bytes of a large file for qemu-ga, whose rate does not depend on it.
        load_pings: pings while the guest is busy.
        starts: starts of each agent.
        warm_up: calls before pings are measured: va-guest logs a thousand calls at once, then few.
    """

    rounds: int = 20
    each: int = 100
    file_rounds: int = 3
    file_size: int = 256 * MIB
    rival_size: int = 256 * MIB
    load_pings: int = 1000
    starts: int = 5
    warm_up: int = 1100


FULL = Plan()
#: Shows that the bench works. Its numbers are of no use.
QUICK = Plan(
    rounds=2, each=5, file_rounds=1, file_size=4 * MIB, rival_size=1 * MIB, load_pings=20, starts=1, warm_up=1
)
