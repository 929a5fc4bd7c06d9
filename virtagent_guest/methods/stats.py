"""va.stats: what goes on in the guest, once or again and again (SPEC.md section 11).

Rates of a single answer are measured over a window of its own, not since the last call: so callers do not
disturb each other, and an answer means the same whoever asked before. Without sections that have rates
there is no window, and the answer comes at once.
"""

from __future__ import annotations

import trio

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Struct, Value

from ..stats.sampler import SECTIONS, Sampler
from ..stats.subscription import SUBSCRIPTIONS, SUBSCRIPTIONS_MAX
from .paths import option

registry = Registry()

#: Seconds of the window. The kernel counts a processor's time in ticks of 10 ms, so shares are good to 2 %.
WINDOW = 0.5
WINDOW_MIN, WINDOW_MAX = 0.05, 10.0
#: Seconds. A sample with a thousand processes takes some 20 ms of a processor, and a hundred in an emulated
#: guest.
INTERVAL_MIN, INTERVAL_MAX = 0.2, 3600.0
#: Processes that are told.
TOP = 10
TOP_MAX = 100


@registry.method("va.stats")
async def stats(call: Call, options: Struct) -> Struct:
    """Return statistics of the guest: sections, top, window; or send them: stream, interval.

    sections are names, all if it is left out; top is how many processes are told. Rates are measured over
    window seconds. With stream, a record goes out on it each interval seconds, if the last one was taken. The
    result is the record; with stream it has the interval and the sections.
    """
    sampler = Sampler(sections := _sections(options), _top(options))
    stream = option(options, "stream", int, None)
    if isinstance(stream, int):
        interval = _seconds(options, "interval", 1.0, INTERVAL_MIN, INTERVAL_MAX)
        if SUBSCRIPTIONS.full:
            raise Fault(
                FaultCode.QUEUE_FULL,
                f"{SUBSCRIPTIONS_MAX} subscriptions to statistics run: end one, then try again",
            )
        call.spawn(SUBSCRIPTIONS.run, sampler, interval, call.accept(stream))
        return {"interval": interval, "sections": [name for name in SECTIONS if name in sections]}
    window = _seconds(options, "window", WINDOW, WINDOW_MIN, WINDOW_MAX)
    if sampler.needs_window:
        await sampler.begin()
        await trio.sleep(window)
    return await sampler.sample()


def _sections(options: Struct) -> frozenset[str]:
    names = option(options, "sections", list, [*SECTIONS])
    assert isinstance(names, list)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        what = f"there is no section {unknown[0]!r:.40}" if unknown else "there must be a section"
        raise Fault(FaultCode.INVALID_PARAMS, f"{what}: the sections are {', '.join(SECTIONS)}")
    return frozenset(str(name) for name in names)


def _top(options: Struct) -> int:
    top: Value = option(options, "top", int, TOP)
    if not isinstance(top, int) or not 1 <= top <= TOP_MAX:
        raise Fault(FaultCode.INVALID_PARAMS, f"top must be 1 to {TOP_MAX}: {top!r:.40}")
    return top


def _seconds(options: Struct, name: str, default: float, least: float, most: float) -> float:
    seconds = option(options, name, float, default)
    if not isinstance(seconds, float) or not least <= seconds <= most:
        raise Fault(FaultCode.INVALID_PARAMS, f"{name} must be {least:g} to {most:g} s: {seconds!r:.40}")
    return seconds
