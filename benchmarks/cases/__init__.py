"""The cases: a function for each kind of work, which yields the rows that it has measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..places import Place
from ..plan import Plan
from ..results import Row
from . import agents, execs, files, load, pings, whole

Case = Callable[[Place, Plan], Iterator[Row]]

#: In the order of the table. Those that disturb the agents come last.
CASES: dict[str, Case] = {
    "memory": agents.memory,
    "ping": pings.ping,
    "pipelined": pings.pipelined,
    "small-file": files.small,
    "exec": execs.true,
    "whole-process": whole.ping,
    "file": files.large,
    "load": load.ping,
    "memory-used": agents.used,
    "start": agents.start,
}
