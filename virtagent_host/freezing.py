"""The handlers of `va_freeze` and `va_thaw`; their entries stand in the table of `commands`.

While the guest's file systems are frozen with a lease, the service renews it (`service.lease`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.values import Struct, Value, as_struct, member

#: Seconds without a renewal by va-host after which the guest thaws: also the guest's own default.
LEASE = 10.0
#: Seconds after which the guest thaws in any case.
DURATION = 60.0
#: Seconds to wait for a freeze or thaw: the hooks of the guest have half a minute, and what is dirty must be
#: written.
TIMEOUT = 60.0


class Guest(Protocol):
    """What the handlers need of an attached VM."""

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the guest and return its result. Raises `VirtagentError`."""


async def freeze(vm: Guest, arguments: Mapping[str, Any], client: object) -> object:
    """Handle `va_freeze`."""
    times = (float(arguments["lease"]), float(arguments["duration"]))
    mountpoints = [path for path in (arguments["mountpoints"] or "").split(":") if path]
    answer = as_struct(await vm.call("va.freeze", *times, [*mountpoints]), "the answer to va.freeze")
    return {
        "frozen": member(answer, "frozen", int),
        "mounts": _strings(answer, "mounts"),
        "skipped": _strings(answer, "skipped"),
    }


async def thaw(vm: Guest, arguments: Mapping[str, Any], client: object) -> object:
    """Handle `va_thaw`."""
    answer = as_struct(await vm.call("va.thaw"), "the answer to va.thaw")
    return {
        "thawed": member(answer, "thawed", int),
        "held": member(answer, "held", bool),
        "why": member(answer, "why", str),
        "failures": _strings(answer, "failures"),
    }


def _strings(struct: Struct, name: str) -> list[str]:
    items = member(struct, name, list)
    if not all(isinstance(item, str) for item in items):
        raise RemoteProtocolError(f"member '{name}' must hold strings only")
    return [str(item) for item in items]
