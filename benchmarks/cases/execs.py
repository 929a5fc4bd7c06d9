"""Short commands."""

from __future__ import annotations

from collections.abc import Iterator

from ..clients import ClientError
from ..places import Place
from ..plan import Plan
from ..results import Row
from ..samples import in_turns, timed
from .pings import milli


def true(place: Place, plan: Plan) -> Iterator[Row]:
    """`true`, from the request until its exit status is known."""

    def ours() -> None:
        result = place.bridge.execute("va_exec", argv=["/bin/true"])
        if result.get("code") != 0:
            raise ClientError(f"true: {result}")

    def theirs() -> None:
        if place.qga.run("/bin/true") != 0:
            raise ClientError("true has failed")

    measures = {"ours": lambda: timed(ours), "theirs": lambda: timed(theirs)}
    taken = in_turns(plan.rounds, measures, each=max(1, plan.each // 10))
    note = "qemu-ga: guest-exec, then guest-exec-status until it has ended"
    yield Row(
        place.name, "exec of true, by va-host", "ms", milli(taken["ours"]), milli(taken["theirs"]), note=note
    )
