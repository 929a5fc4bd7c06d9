"""`make bench`: measure both agents, print the table, write build/bench.json.

.venv/bin/python -m benchmarks [--quick] [--native-only] [--case NAME]…
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from .cases import CASES
from .guest import guest
from .native import native
from .places import ROOT, Place
from .plan import FULL, QUICK, Plan
from .results import Row, cells, table, write

#: What the bench runs at, with everything it starts: less is disturbed by what else the machine does.
_NICE = -5

Open = Callable[[Path], AbstractContextManager[Place]]
PLACES: dict[str, Open] = {"native": native, "guest": guest}


def main() -> int:
    """Run the benchmarks; 0 if all was measured, however long it took."""
    parser = argparse.ArgumentParser(prog="make bench", description="va-guest and qemu-ga side by side.")
    parser.add_argument("--quick", action="store_true", help="only see that it works; no number is of use")
    parser.add_argument("--native-only", action="store_true", help="no guest")
    parser.add_argument("--guest-only", action="store_true", help="only in the guest")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this; may be repeated")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json", metavar="FILE")
    options = parser.parse_args()
    # As Ctrl-C does, so that no QEMU is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with suppress(OSError):  # only root may
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    places = [name for name in PLACES if not (options.native_only and name == "guest")]
    places = [name for name in places if not (options.guest_only and name == "native")]
    plan = QUICK if options.quick else FULL
    began = os.getloadavg()[0]
    rows = [row for name in places for row in _measure(name, options.case or list(CASES), plan)]
    write(rows, options.output, quick=options.quick, load_before=began)
    print(table(rows))
    load = f"{began:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"\nload of the machine: {load}; all rows in {options.output}")
    return 1 if any(row.failed for row in rows) else 0


def _measure(name: str, cases: list[str], plan: Plan) -> Iterator[Row]:
    _tell(f"{name}: starting both agents")
    # Sockets have short names only, so not below build/.
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as scratch,
        PLACES[name](Path(scratch)) as place,
    ):
        for case in cases:
            begin = time.monotonic()
            _tell(f"{name}: {case}")
            try:
                for row in CASES[case](place, plan):
                    _tell(" ".join(cells(row)))
                    yield row
            except Exception as error:  # noqa: BLE001 - the other cases shall be measured all the same
                yield Row(name, case, failed=True, note=f"FAILED: {type(error).__name__}: {error}")
            _tell(f"{name}: {case} took {time.monotonic() - begin:.0f} s")


def _tell(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
