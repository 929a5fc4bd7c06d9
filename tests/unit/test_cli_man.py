"""The man page says what the command line says."""

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs/man"


def test_the_man_page_is_that_of_the_present_help() -> None:
    root = DOCS.parents[1]
    made = subprocess.run(
        [sys.executable, DOCS / "generate.py"],
        capture_output=True,
        check=True,
        timeout=30,
        env={"PYTHONPATH": f"{root}:{root / 'protocol'}"},
    )
    current = made.stdout == (DOCS / "va-host.1").read_bytes()
    assert current, "run: python docs/man/generate.py >docs/man/va-host.1"
