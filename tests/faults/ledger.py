"""What became of every call while a fault was at work: the one place where it is judged.

The rules:

1. A call ends in one of five ways. *Answered*: with its own answer. *Failed*: with a reason that fits the
   fault. *Misfit*: with another reason. *Wrong*: with a value that is not its answer. *Hung*: not by its own
   deadline and GRACE. A fault is survived if there is none of the last three.
2. Which reasons fit is said by the test, as patterns of the words that a user reads.
3. A ledger is written to a file of its name under build/faults, whatever the verdict; `report` makes the
   table of them.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: How often a fault is repeated that costs about a second: the short form, which is part of `make test`.
SHORT = 5
REPEAT = int(os.environ.get("FAULT_REPEAT", str(SHORT)))
#: Whether this is the long form, `make test-faults`.
LONG = REPEAT > SHORT

#: Where the accounts are kept. The report is made of the long form's, and of the soak's.
_RESULTS = Path(__file__).resolve().parents[2] / "build" / "faults"
FOR_REPORT = _RESULTS / "long"
IN_PASSING = _RESULTS / "short"

#: Of everything random. Printed with each test, so that a failure can be had again.
SEED = int(os.environ.get("FAULT_SEED", "1"))

#: Seconds beyond its deadline after which a call counts as hung: scheduling on a busy machine.
GRACE = 10.0
#: Different reasons kept, and examples of what must not be.
KEPT = 40

# Reasons, as bridge and agent word them.
TIMED_OUT = r"timed out: .*(was not done|no answer) within .*"
NOT_READY = r"not ready: (no-port|port-closed|greeting|paused): .*"
RESET = r"broken: the call's session has ended: .*"
BRIDGE_CLOSED = r"the bridge closed the connection"


@dataclass
class Ledger:
    """The account of one fault.

    Attributes:
        name: of the fault; also of its file.
        what: the fault in words, for the table.
        where: what it was done to: ``processes`` or ``guest``; ``soak``: many faults on one.
        fits: patterns of the reasons that fit.
        times: how often the fault was done.
    again: seconds from the fault to the next answered call, where there is one.
        drops: messages that the host dropped meanwhile, by cause.
        growth: KiB by which va-host's resident memory grew over all repetitions; None if it was restarted.
    """

    name: str
    what: str
    where: str
    fits: tuple[str, ...]
    times: int = 0
    again: list[float] = field(default_factory=list)
    answered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    misfits: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    growth: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Calls that failed with a reason that fits."""
        return sum(self.reasons.values())

    @property
    def made(self) -> int:
        """All calls that have ended, or should have."""
        return self.answered + self.failed + len(self.misfits) + len(self.wrong) + len(self.hung)

    def fail(self, reason: str, times: int = 1) -> None:
        """A call was told this reason."""
        if any(re.fullmatch(pattern, reason, re.DOTALL) for pattern in self.fits):
            self.reasons[_kind(reason)] += times
        else:
            self.misfits += [reason] * times

    def add_agents(self, tallies: Iterable[dict[str, Any]]) -> None:
        """Add the guest-to-host calls, as each run of the agent has counted them (`agent`)."""
        for tally in tallies:
            self.answered += tally["answered"]
            self.wrong += tally["wrong"]
            self.hung += tally["hung"]
            for reason, times in tally["failed"].items():
                self.fail(reason, times)

    def write(self) -> None:
        """Keep the account for the report."""
        results = FOR_REPORT if LONG or self.where == "soak" else IN_PASSING
        results.mkdir(parents=True, exist_ok=True)
        document = {
            "name": self.name,
            "what": self.what,
            "where": self.where,
            "repetitions": self.times,
            "made": self.made,
            "answered": self.answered,
            "failed": self.failed,
            "reasons": dict(self.reasons.most_common(KEPT)),
            "misfit": len(self.misfits),
            "wrong": len(self.wrong),
            "hung": len(self.hung),
            "again": [round(seconds, 3) for seconds in self.again],
            "drops": dict(self.drops),
            "growth_kib": self.growth,
            "notes": self.notes,
            "seed": SEED,
        }
        (results / f"{self.name}.json").write_text(json.dumps(document, indent=1) + "\n")

    def check(self) -> None:
        """Fail unless every call ended as it should, and there were calls to tell."""
        print(
            f"{self.name}: {self.times} times, {self.made} calls, {self.answered} answered, "
            f"{self.failed} failed: {dict(self.reasons)}; again after {sorted(self.again)[-1:]} s at most"
        )
        assert not self.wrong, f"{len(self.wrong)} wrong answers: {self.wrong[:KEPT]}"
        assert not self.hung, f"{len(self.hung)} calls hung: {self.hung[:KEPT]}"
        assert not self.misfits, f"{len(self.misfits)} unfit reasons: {Counter(self.misfits).most_common(5)}"
        assert self.answered > 0, "no call was answered"


def _kind(reason: str) -> str:
    """Return a reason without its figures, so that equal ones are counted together."""
    return re.sub(r"[0-9.]+(?= s\b)|[0-9a-f]{16}|/\S+", "…", reason.splitlines()[0])[:160]


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process (proc(5), VmRSS)."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None, f"process {pid} has ended"
    return int(match[1])
