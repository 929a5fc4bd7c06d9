"""What may be called while file systems are frozen.

A handler that writes to a frozen file system hangs until it is thawed; so all but those that are known not to
write are refused at once, and can be repeated then. ``guest.…`` methods are not decided here: each of them
says for itself whether it is safe (`methods.qga`).
"""

from __future__ import annotations

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Gate
from virtagent_protocol.values import Value

from .client import FreezeClient

#: They read, and reading goes on: the kernel does not even note the time of it while a file system is frozen.
SAFE = frozenset(
    {
        *("va.ping", "va.hello", "va.capabilities", "va.getfile", "va.getdmesg"),
        *("va.read_tree", "va.list", "va.stat"),
        *("va.freeze", "va.renew_freeze", "va.thaw", "va.freeze_status"),
        "va.reseed",
        "va.stats",
        # What they carry is judged by itself.
        *("va.sessions", "va.session"),
        *("va.jobs", "va.job_attach", "va.job_signal", "va.job_resize", "va.job_forget"),
    }
)
#: These judge the calls within them by themselves.
_JUDGED_ELSEWHERE = ("guest.", "system.")


class FreezeGate(Gate):
    """Refuses what may write while file systems are frozen; all else is another gate's decision.

    Args:
        inner: that other gate.
        freezer: knows whether they are.
    """

    def __init__(self, inner: Gate, freezer: FreezeClient) -> None:
        self._inner = inner
        self._freezer = freezer

    async def admit(self, method: str, params: list[Value]) -> None:
        await self._inner.admit(method, params)
        if self._freezer.holding and method not in SAFE and not method.startswith(_JUDGED_ELSEWHERE):
            raise Fault(
                FaultCode.NOT_READY, f"{method} is refused while file systems are frozen: thaw them first"
            )

    def passes(self, method: str) -> bool:
        return self._inner.passes(method) and (method in SAFE or not self._freezer.holding)

    def forbidden(self, methods: list[str]) -> list[str] | None:
        return self._inner.forbidden(methods)
