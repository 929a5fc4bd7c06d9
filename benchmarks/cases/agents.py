"""What an agent costs while it does nothing, and until it does something."""

from __future__ import annotations

from collections.abc import Iterator

from ..places import Place
from ..plan import Plan
from ..results import Row
from ..samples import Samples, in_turns
from .pings import milli


def memory(place: Place, plan: Plan) -> Iterator[Row]:
    """Resident memory of an agent that has said hello and answered a call."""
    place.bridge.execute("va_ping")
    place.qga.execute("guest-ping")
    ours, theirs = place.memory()
    note = "the goal is the size"
    yield Row(place.name, "agent memory", "MiB", Samples([ours]), Samples([theirs]), figure=ours, note=note)


def used(place: Place, plan: Plan) -> Iterator[Row]:
    """The same, of an agent that has done all the work of the rows before this one."""
    ours, theirs = place.memory()
    yield Row(place.name, "agent memory after all this", "MiB", Samples([ours]), Samples([theirs]))


def start(place: Place, plan: Plan) -> Iterator[Row]:
    """From its start to the answer to the first call."""
    taken = in_turns(plan.starts, {"ours": place.start_ours, "theirs": place.start_theirs})
    ours, theirs = (milli(samples) for samples in taken.values())
    yield Row(place.name, "agent start to first answer", "ms", ours, theirs)
