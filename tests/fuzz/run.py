"""`make fuzz`: each target for FUZZ_SECONDS (60), one after the other; says what was done.

What it learns stays in build/fuzz/TARGET/corpus, and the next run goes on from there. An input that breaks a
promise is left in build/fuzz/TARGET/, and the exit status is 1: mend it, and keep the input in
tests/fuzz/found/TARGET/.

    python -m tests.fuzz.run [TARGET…]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.seeds import write
from tests.fuzz.targets import TARGETS

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))
#: Seconds for one input, and MiB for one target: more is a finding as well.
INPUT_SECONDS, MEMORY = 10, 1024
#: Bytes of an input. Enough for a few messages; what takes megabytes is tests/integration/test_hostile_*.
LENGTH = 8192
#: Seconds beyond its own for a target to end.
GRACE = 60

_PROGRESS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+)")


def fuzz(name: str) -> bool:
    """Run one target; return whether it found nothing."""
    directory = BUILD / name
    write(directory, name)
    command = [sys.executable, "-m", "tests.fuzz.fuzz", name, str(directory / "corpus")]
    command += [f"-dict={directory / 'words'}", f"-artifact_prefix={directory}/", f"-max_len={LENGTH}"]
    command += [f"-max_total_time={SECONDS}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY}"]
    result = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=SECONDS + GRACE, check=False
    )
    output = result.stdout + result.stderr
    runs, coverage = (_PROGRESS.findall(output) or [("0", "0")])[-1]
    kept = len(list((directory / "corpus").iterdir()))
    outcome = "ok" if result.returncode == 0 else f"FAILED, see {directory}"
    print(f"fuzz: {name:10} {runs:>9} runs  {coverage:>5} edges  {kept:>5} inputs  {outcome}", flush=True)
    if result.returncode:
        (directory / "output").write_text(output)
        print(output[-4000:], file=sys.stderr)
    return result.returncode == 0


if __name__ == "__main__":
    results = [fuzz(name) for name in sys.argv[1:] or TARGETS]
    sys.exit(0 if all(results) else 1)
