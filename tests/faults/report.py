"""Print docs/reliability.md, made of what the fault suite and the soak left under build/faults.

make test-faults soak
python -m tests.faults.report >docs/reliability.md
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from tests.faults.ledger import FOR_REPORT, GRACE
from tests.guest.qemu import accelerator
from virtagent_protocol import __version__

#: Reasons shown for each fault.
REASONS = 4

_HEAD = f"""# Reliability

What becomes of calls while things break. Made by `tests/faults/report.py` from a run of `make test-faults`
and `make soak`; do not edit. A short form of the suite is part of `make test`. Everything random comes from
one seed (`FAULT_SEED`, here {{seed}}), which each test prints. virtagent {__version__}.

While each fault is done, eight clients of the bridge call the guest (`va_ping`, and `va_viewfile` of random
parts of a file whose content the test knows), and the agent calls the host from four tasks
(`system.multicall` of a name that is never the same, which the answer repeats), all with deadlines from 0.3
to 5 s. Every answer is compared with the one that belongs to the call.

* *answered*: with its own answer. *failed*: with a reason that fits the fault, by its deadline at the latest.
* *wrong*: with another call's answer, a changed one, or a reason that does not fit. *hung*: not ended
  {GRACE:g} s after its deadline. Both must be 0, or the suite fails.
* *ready again*: the seconds from the fault to the next call that is answered, median and most, without
  anybody's help but that of a supervisor who restarts what was killed. Where a fault lasts a while, that is
  in it unless it says otherwise.
* *growth*: of va-host's resident memory over all repetitions; in a soak, from its least to its most.

A guest runs under {{accelerator}}, on the machine that everything else runs on, too; its boot is in what it
takes to be ready again.
"""

_TAIL = """
## What this does not show

* A bit that is flipped *inside a value* cannot be noticed without a checksum. Virtio-serial and unix sockets
  flip none; on serial lines both ends agree on checksums by themselves. So bits are flipped only where there
  are checksums. A byte that is lost, doubled or inserted changes a length, and shows without.
* A message that is cut off inside its body, by a peer whose coming and going the host cannot see (a serial
  line, a relay), is given up when a heartbeat has stayed unanswered: after up to 11 s. On a virtio-serial
  port QEMU tells, and it takes one.
* `loadvm` puts the guest back to where it used tags that it will use again. The port is reset with it, by
  which the host ends the session; what the host had written before is still delivered. To take it for an
  answer of its own, the guest would have to repeat the same number of calls before it reads anything: a
  matter of microseconds, and only if `loadvm` follows upon `savevm` at once. It was not seen.
* Wall clocks were stepped in the guest by `date`, and in the processes by replacing Python's `time.time`, the
  only way by which they ask for it; a test holds the list of the modules that may.
"""


def main() -> None:
    """Print the page."""
    results = [json.loads(path.read_text()) for path in sorted(FOR_REPORT.glob("*.json"))]
    if not results:
        sys.exit(f"nothing in {FOR_REPORT}: run make test-faults, then make soak")
    print("\n".join(page(results)))


def page(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the page's lines."""
    yield _HEAD.format(
        seed=", ".join(sorted({str(result["seed"]) for result in results})), accelerator=accelerator()
    )
    for where, title in (
        ("processes", "Faults of processes and of the wire between them"),
        ("guest", "Faults of a guest and its QEMU"),
        ("soak", "Soak: random faults, one after another"),
    ):
        chosen = [result for result in results if result["where"] == where]
        if chosen:
            yield f"## {title}\n"
            yield from _table(chosen)
            yield ""
            yield from _details(chosen)
            yield ""
    yield _TAIL.strip()


def _table(results: list[dict[str, Any]]) -> Iterator[str]:
    columns = (
        "fault",
        "times",
        "calls",
        "answered",
        "failed",
        "wrong",
        "hung",
        "ready again (s)",
        "growth (KiB)",
    )
    yield f"| {' | '.join(columns)} |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for result in results:
        again = result["again"]
        times = f"{statistics.median(again):.2f}, {max(again):.2f}" if again else "-"
        growth = "-" if result["growth_kib"] is None else result["growth_kib"]
        wrong = result["wrong"] + result["misfit"]
        figures = (result["repetitions"], result["made"], result["answered"], result["failed"], wrong)
        yield f"| {' | '.join(map(str, (result['what'], *figures, result['hung'], times, growth)))} |"


def _details(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what else is known of each: notes, what the host dropped, what the callers were told."""
    for result in results:
        parts = list(result["notes"])
        if result["drops"]:
            drops = sorted(result["drops"].items())
            parts.append("dropped by the host: " + ", ".join(f"{cause} {n}" for cause, n in drops))
        reasons = sorted(result["reasons"].items(), key=lambda item: -item[1])
        shown = [f"`{reason}` ({times})" for reason, times in reasons[:REASONS]]
        if len(reasons) > REASONS:
            shown.append(f"{sum(times for _, times in reasons[REASONS:])} others")
        if shown:
            parts.append("callers were told: " + "; ".join(shown))
        if parts:
            yield f"* *{result['what']}*: {'. '.join(parts)}."


if __name__ == "__main__":
    main()
