"""A wall clock that can be stepped, for every Python process that has this directory in PYTHONPATH.

FAULT_CLOCK names a file that holds the seconds by which the clock is off. The machine's own clock belongs to
others, and a time namespace (unshare --time) moves only the monotonic clocks, which real steps leave alone.
"""

import os
import time

_path = os.environ.get("FAULT_CLOCK")
_time, _time_ns = time.time, time.time_ns


def _offset() -> int:
    assert _path is not None
    with open(_path) as file:
        return int(file.read() or 0)


if _path:
    time.time = lambda: _time() + _offset()
    time.time_ns = lambda: _time_ns() + _offset() * 1_000_000_000
