"""guest-fsfreeze-*: freezing with qemu-ga's meaning, which is without a lease; see `methods.freeze` for one
with.

It differs in one respect: a freeze does not outlive the agent. qemu-ga writes a note and is still "frozen"
when it was killed and starts again; here the freezer thaws then.
"""

from __future__ import annotations

from ...freeze.client import FREEZER, FreezeError
from .command import FREEZE, CommandRegistry, QgaError

registry = CommandRegistry()


def _note() -> None:
    FREEZE.frozen = FREEZER.holding


FREEZER.listeners.append(_note)


@registry.command("guest-fsfreeze-status", safe=True, inline=True)
async def fsfreeze_status() -> str:
    """Return whether file systems are frozen: "frozen" or "thawed"."""
    return "frozen" if FREEZER.frozen is not None else "thawed"


@registry.command("guest-fsfreeze-freeze")
async def fsfreeze_freeze() -> int:
    """Freeze all file systems that lie on block devices, and return how many were frozen."""
    return await _freeze(None)


@registry.command("guest-fsfreeze-freeze-list")
async def fsfreeze_freeze_list(mountpoints: list[str] | None = None) -> int:
    """Freeze the file systems at these mount points, and return how many were frozen; others are ignored."""
    return await _freeze(mountpoints)


# Urgent: other calls may be hanging in writes until this one is done.
@registry.command("guest-fsfreeze-thaw", safe=True, urgent=True)
async def fsfreeze_thaw() -> int:
    """Thaw all file systems, and return how many were frozen."""
    try:
        thawed = await FREEZER.thaw()
    except FreezeError as error:
        raise QgaError(str(error)) from None
    if thawed.failures:
        raise QgaError(f"{thawed.count} file systems were thawed, but: {'; '.join(thawed.failures)}")
    return thawed.count if thawed.why == "asked" else 0


async def _freeze(mountpoints: list[str] | None) -> int:
    try:
        return len((await FREEZER.freeze(mountpoints)).mounts)
    except FreezeError as error:
        raise QgaError(str(error)) from None
