"""va.freeze, va.renew_freeze, va.thaw, va.freeze_status: freezing that cannot stick (SPEC.md section 11).

A freeze ends by itself when its time is over, or when the host has not renewed it for as long as its lease
says. All but va.freeze are executed outside the link's slots: the calls that have those may be hanging in
writes until the freeze ends.
"""

from __future__ import annotations

import math

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Value

from ..freeze.client import FREEZER, FreezeError, Frozen

registry = Registry()

#: Seconds. As long as it takes to notice that the host is gone; it renews three times as often.
LEASE = 10.0
#: Seconds: what the snapshot of a disk should take, several times over.
DURATION = 60.0
#: Seconds: longer freezes are for qemu-ga's commands, which have no end.
SECONDS_MAX = 86400.0
#: Mount points that stand for all of them.
ALL: list[Value] = []


@registry.method("va.freeze")
async def freeze(
    call: Call, lease: float = LEASE, duration: float = DURATION, mountpoints: list[Value] = ALL
) -> dict[str, Value]:
    """Freeze the file systems that lie on block devices, all of them or those at these mount points.

    No mount points means all. They thaw by va.thaw, when lease seconds have passed without va.renew_freeze,
    after duration seconds in any case, and when the agent ends. frozen is how many were frozen, mounts says
    which, skipped why others were not.
    """
    for name, seconds in (("lease", lease), ("duration", duration)):
        if not 0 < seconds <= SECONDS_MAX:
            raise Fault(
                FaultCode.INVALID_PARAMS, f"{name} must be over 0 and at most {SECONDS_MAX:g} s: {seconds:g}"
            )
    wanted = [path for path in mountpoints if isinstance(path, str)]
    if len(wanted) != len(mountpoints):
        raise Fault(FaultCode.INVALID_PARAMS, "mountpoints must be strings")
    try:
        frozen = await FREEZER.freeze(wanted or None, lease=lease, duration=duration)
    except FreezeError as error:
        raise _fault(error) from None
    return {"frozen": len(frozen.mounts), **_described(frozen)}


@registry.method("va.renew_freeze", urgent=True)
async def renew_freeze(call: Call) -> float:
    """Begin the lease of the freeze anew; return the seconds that it has left."""
    try:
        return await FREEZER.renew()
    except FreezeError as error:
        raise _fault(error) from None


@registry.method("va.thaw", urgent=True)
async def thaw(call: Call) -> dict[str, Value]:
    """End the freeze; without one, thaw what anybody has frozen.

    thawed is how many file systems were thawed, failures what went wrong with the hooks. held says whether
    the freeze had stood until now; if not, why says what has ended it: a snapshot that was made meanwhile is
    none of a guest at rest.
    """
    held = FREEZER.frozen is not None
    ended = FREEZER.last.why if FREEZER.last else "nothing was frozen"
    try:
        thawed = await FREEZER.thaw()
    except FreezeError as error:
        raise _fault(error) from None
    held = held and thawed.why == "asked"
    return {
        "thawed": thawed.count,
        "held": held,
        "why": thawed.why if held or thawed.why != "asked" else ended,
        "failures": [*thawed.failures],
    }


@registry.method("va.freeze_status", inline=True)
async def freeze_status(call: Call) -> dict[str, Value]:
    """Return status (frozen or thawed); if frozen: mounts, skipped, lease, duration and since (seconds).

    A lease or duration of 0 is none. last says how the last freeze has ended.
    """
    frozen = FREEZER.frozen
    last: dict[str, Value] = {"last": FREEZER.last.why} if FREEZER.last else {}
    if frozen is None:
        return {"status": "thawed", **last}
    return {
        "status": "frozen",
        **_described(frozen),
        "lease": _finite(frozen.lease),
        "duration": _finite(frozen.duration),
        "since": frozen.since,
        **last,
    }


def _described(frozen: Frozen) -> dict[str, Value]:
    return {
        "mounts": [_text(path) for path in frozen.mounts],
        "skipped": [_text(why) for why in frozen.skipped],
    }


def _finite(seconds: float) -> float:
    return 0.0 if math.isinf(seconds) else seconds


def _text(name: str) -> str:
    # A mount point may be any bytes.
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _fault(error: FreezeError) -> Fault:
    return Fault(FaultCode.NOT_READY if error.not_now else FaultCode.FAILED, str(error))
