"""A whole process: what somebody at a prompt waits for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from ..places import NAME, Place
from ..plan import Plan
from ..results import Row
from ..samples import in_turns, timed
from .pings import milli

#: The least that a Python can do: connect, ask, look at the answer.
_BARE = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"execute":"guest-ping"}\\n')
print(json.loads(s.makefile("rb").readline())["return"])
"""


def ping(place: Place, plan: Plan) -> Iterator[Row]:
    """`va-host ping`, and a bare Python on qemu-ga's socket."""
    measures = {
        "ours": lambda: timed(lambda: _run(*place.va_host("ping", NAME))),
        "theirs": lambda: timed(lambda: _run(sys.executable, "-c", _BARE, str(place.qga_path))),
    }
    with place.without_qga():
        taken = in_turns(plan.rounds, measures)
    ours, theirs = (milli(samples) for samples in taken.values())
    yield Row(
        place.name,
        "va-host ping, whole process",
        "ms",
        ours,
        theirs,
        figure=ours.median,
        note="against a bare Python; the goal is the time",
    )


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
