"""Round trips."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..clients import ClientError, LineClient
from ..places import Place
from ..plan import Plan
from ..results import Row
from ..samples import Samples, in_turns, timed

#: Requests that are on their way at a time.
PIPELINE = 100


def ping(place: Place, plan: Plan) -> Iterator[Row]:
    """One at a time: each agent on its channel; then a client of va-host's bridge, as users are."""
    measures: dict[str, Callable[[], float]] = {
        "wire": lambda: timed(place.wire.ping),
        "qga": lambda: timed(lambda: once(place.qga, place.qga.PING)),
        "bridge": lambda: timed(lambda: once(place.bridge, place.bridge.PING)),
    }
    for measure in measures.values():
        for _ in range(plan.warm_up):
            measure()
    taken = in_turns(plan.rounds, measures, each=plan.each)
    ours, theirs, bridge = (micro(taken[name]) for name in measures)
    yield Row(place.name, "ping", "µs", ours, theirs, note="both agents on their channels, by like clients")
    yield Row(place.name, "ping by va-host", "µs", bridge, theirs, note="through bridge and link")


def pipelined(place: Place, plan: Plan) -> Iterator[Row]:
    """A hundred requests in one write, until the last answer."""

    def flood(client: LineClient, request: bytes) -> float:
        def work() -> None:
            client.send(request * PIPELINE)
            for _ in range(PIPELINE):
                _check(client.answer())

        return timed(work)

    measures = {
        "ours": lambda: flood(place.bridge, place.bridge.PING),
        "theirs": lambda: flood(place.qga, place.qga.PING),
    }
    taken = in_turns(plan.rounds, measures)
    yield Row(
        place.name,
        f"{PIPELINE} pings at once, by va-host",
        "ms",
        milli(taken["ours"]),
        milli(taken["theirs"]),
    )


def once(client: LineClient, request: bytes) -> None:
    """Do one round trip."""
    client.send(request)
    _check(client.answer())


def micro(samples: Samples) -> Samples:
    """Return samples of seconds as microseconds."""
    return Samples([1e6 * value for value in samples.values])


def milli(samples: Samples) -> Samples:
    """Return samples of seconds as milliseconds."""
    return Samples([1e3 * value for value in samples.values])


def _check(answer: bytes) -> None:
    if b'"return"' not in answer:
        raise ClientError(answer.decode())
