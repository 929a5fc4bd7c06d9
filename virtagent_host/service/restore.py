"""After sleep and restore: what a guest cannot know by itself is put right, and told once.

The rules:

1. A guest that was stopped, suspended, restored or migrated finds out nothing: its clock goes on where it
   stood, and a snapshot that is loaded twice draws the same random numbers twice. So whenever it runs again
   its clock is looked at and its kernel gets fresh entropy; then one VA_GUEST_RESUMED tells what came of it.
2. The clock is set only if it is off by more than `TOLERANCE`, and only if the host was asked to. What the
   guest's policy refuses is accepted, and logged once.
3. No event of QEMU tells a loaded snapshot from a pause (both are STOP and RESUME). The guest's clock does:
   it lags by more than the pause was long. So the cause is the best guess, and what is done does not
   depend on it.
4. A guest that does not answer within `PATIENCE` runs no agent: nothing is told. While it is frozen it is
   waited for. Stopped again before it was seen to, it is seen to once, when it goes on.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

import trio

from virtagent_protocol.errors import FailureKind, RemoteFault, RemoteProtocolError, VirtagentError
from virtagent_protocol.linkstate import LinkState, Status

from ..options import SetClock
from .vm import Vm

log = logging.getLogger("virtagent.host")

_T = TypeVar("_T")

#: {name, cause, downtime, clock, clock-step, reseeded}; see `Restorer`.
EVENT = "VA_GUEST_RESUMED"
#: Seconds that a clock may be off: NTP clients slew what is less, and a busy guest takes as long to answer.
TOLERANCE = 0.5
#: Seconds for an agent to answer after the VM goes on.
PATIENCE = 60.0
#: Seconds for one attempt: an agent that woke up in an old session does not answer the first. Setting the
#: time takes longer, since the hardware clock is set at the begin of a second.
ATTEMPT, ATTEMPT_TO_SET = 3.0, 15.0
#: Seconds between two attempts.
AGAIN = 0.2
#: Bytes of entropy: twice what the kernel's generator holds.
ENTROPY = 64
#: Seconds that a clock must lag beyond the length of the pause to tell of a snapshot.
LAG_OF_SNAPSHOT = 2.0

_ANSWERING = (LinkState.READY, LinkState.FROZEN)


class Cause(Enum):
    """Why a guest did not run, the weakest first."""

    #: The VM was stopped and goes on.
    PAUSE = "pause"
    #: It slept (S3).
    WAKEUP = "wakeup"
    #: A saved state was loaded.
    RESTORE = "restore"
    #: It came from another QEMU.
    MIGRATION = "migration"


_WEIGHT = {cause: weight for weight, cause in enumerate(Cause)}


@dataclass(frozen=True)
class Stop:
    """A time in which the guest did not run.

    Attributes:
        cause: as far as QEMU has told.
        since: when it began (`trio.current_time`), None if nobody knows.
        boot: the guest's boot id at that time, "" where unknown.
    """

    cause: Cause
    since: float | None
    boot: str


class Restorer:
    """Sees to the guest of one QEMU when it runs again.

    The data of `EVENT`: ``cause``, of `Cause`; ``downtime``, seconds, or null if it began before we came;
    ``clock``: ``right``, ``set``, ``left`` (it is off, and we were not asked), ``refused`` (by the guest's
    policy), ``failed`` or ``unknown``; ``clock-step``, seconds by which it was behind, or null; ``reseeded``.

    Args:
        vm: the VM.
        set_clock: whether the clock is to be set.
        loaded: whether QEMU was started from a saved state.
    """

    def __init__(self, vm: Vm, set_clock: SetClock, *, loaded: bool = False) -> None:
        self._vm = vm
        self._set_clock = set_clock
        #: The guest of an earlier QEMU, which may come back in this one, out of a file.
        self._known = vm.last_boot
        self._loaded = loaded
        self._stop: Stop | None = None
        self._tended: Stop | None = None
        self._runs = True
        self._scope = trio.CancelScope()
        self._resumed = trio.Event()
        #: What it was off when it was last seen to, and left so.
        self._usual = 0.0
        self._told = ""

    # --- What QEMU tells -----------------------------------------------------------------------------

    def found(self, status: str) -> None:
        """QEMU does not run the guest at the moment; *status* is its RunState (qapi/run-state.json)."""
        self._runs = False
        # One that has not begun yet (prelaunch) boots, or is loaded.
        if status != "prelaunch":
            causes = {"inmigrate": Cause.MIGRATION, "suspended": Cause.WAKEUP}
            self._stop = Stop(causes.get(status, Cause.PAUSE), None, self._boot)

    def stopped(self, cause: Cause) -> None:
        """The guest does not run any more."""
        self._runs = False
        begun = self._stop or self._tended
        if begun is None:
            self._stop = Stop(cause, trio.current_time(), self._boot)
            return
        self._scope.cancel()
        self._stop = replace(begun, cause=max(begun.cause, cause, key=_WEIGHT.__getitem__))

    def resumed(self) -> None:
        """The guest runs."""
        self._runs = True
        if self._stop is not None:
            self._resumed.set()

    # --- The task ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """See to the guest whenever it runs again, until cancelled."""
        if self._known or self._loaded:
            await self._meet()
        while True:
            await self._resumed.wait()
            self._resumed = trio.Event()
            if self._stop is None or not self._runs:
                continue  # stopped again meanwhile
            stop, self._stop = self._stop, None
            self._tended = stop
            with trio.CancelScope() as self._scope:
                await self._tend(stop)
            self._tended = None

    async def _meet(self) -> None:
        """Find out whether this QEMU's guest ran before, in another one."""
        await self._vm.link.wait_for(_is_answering)
        if self._stop is None and not self._resumed.is_set() and (self._loaded or self._boot == self._known):
            self._stop = Stop(Cause.RESTORE, None, self._boot)
            self._resumed.set()

    async def _tend(self, stop: Stop) -> None:
        downtime = None if stop.since is None else trio.current_time() - stop.since
        with trio.move_on_after(PATIENCE) as patience:
            await self._vm.link.wait_for(_is_answering)
        if patience.cancelled_caught:
            log.info("%s: the guest runs again, and no agent answers", self._vm.name)
            return
        await self._vm.link.wait_for(_is_ready)
        with trio.move_on_after(PATIENCE):
            reseeded = await self._reseed()
            off = await self._look()
            rebooted = bool(stop.boot) and self._boot != stop.boot
            if rebooted and not _is_off(off):
                return  # it has told so itself, by its hello
            cause = stop.cause
            if cause is Cause.PAUSE and (rebooted or self._lags(off, downtime)):
                cause = Cause.RESTORE
            clock = await self._see_to_clock(off)
            step = None if off is None else round(-_middle(off), 3)
            self._tell(cause, downtime, clock, step, reseeded)

    def _tell(
        self, cause: Cause, downtime: float | None, clock: str, step: float | None, reseeded: bool
    ) -> None:
        seconds = None if downtime is None else round(downtime, 3)
        told = "" if seconds is None else f" after {seconds:.1f} s"
        behind = "" if step is None or clock == "right" else f" (it was {step:+.1f} s behind)"
        log.info(
            "%s: the guest runs again%s (%s): clock %s%s, %sreseeded",
            *(self._vm.name, told, cause.value, clock, behind, "" if reseeded else "not "),
        )
        data = {"cause": cause.value, "downtime": seconds, "clock": clock, "clock-step": step}
        self._vm.emit(EVENT, {"name": self._vm.name, **data, "reseeded": reseeded})

    @property
    def _boot(self) -> str:
        session = self._vm.link.session
        return self._vm.last_boot if session is None else session.peer.boot_id

    # --- Entropy -------------------------------------------------------------------------------------

    async def _reseed(self) -> bool:
        try:
            await self._insist(lambda: self._vm.call("va.reseed", secrets.token_bytes(ENTROPY)), ATTEMPT)
        except RemoteFault as fault:
            log.debug("%s: the guest's kernel was not reseeded: %s", self._vm.name, fault)
            return False
        return True

    # --- The clock -----------------------------------------------------------------------------------

    async def _look(self) -> tuple[float, float] | None:
        """Return by how many seconds the guest's clock is ahead, at least and at most; None: it tells not."""
        try:
            return await self._insist(self._measure, ATTEMPT)
        except (RemoteFault, RemoteProtocolError) as error:
            log.debug("%s: the guest does not tell its time: %s", self._vm.name, error)
            return None

    async def _measure(self) -> tuple[float, float]:
        before = time.time_ns()
        found = await self._vm.call("guest.get_time", {})
        after = time.time_ns()
        if type(found) is not int or not 0 <= found < 2**63:
            raise RemoteProtocolError("the answer to guest.get_time must be nanoseconds since 1970")
        return (found - after) / 1e9, (found - before) / 1e9

    def _lags(self, off: tuple[float, float] | None, downtime: float | None) -> bool:
        if off is None or downtime is None:
            return False
        return self._usual - off[1] > downtime + LAG_OF_SNAPSHOT

    async def _see_to_clock(self, off: tuple[float, float] | None) -> str:
        """Set the clock if that is needed and wanted; return the event's word for it."""
        if off is None:
            return "unknown"
        word = "right"
        # Once more if the guest was so slow that it set what was past.
        for _ in range(2):
            if off is None or not _is_off(off):
                break
            if self._set_clock is SetClock.NEVER:
                word = "left"
                break
            try:
                await self._insist(self._set, ATTEMPT_TO_SET)
            except RemoteFault as fault:
                refused = fault.kind is FailureKind.FORBIDDEN
                word = "refused" if refused else "failed"
                self._warn(f"the guest's clock was not set: {fault}")
                break
            word = "set"
            off = await self._look()
        self._usual = 0.0 if off is None or not _is_off(off) else _middle(off)
        return word

    async def _set(self) -> None:
        await self._vm.call("guest.set_time", {"time": time.time_ns()})

    def _warn(self, text: str) -> None:
        """Log what would be the same each time once."""
        if text != self._told:
            self._told = text
            log.warning("%s: %s", self._vm.name, text)

    # --- Calls ---------------------------------------------------------------------------------------

    async def _insist(self, call: Callable[[], Awaitable[_T]], seconds: float) -> _T:
        """Return what a call returns, made again while the link is not what it seems.

        Raises:
            RemoteFault, RemoteProtocolError: the guest has answered.
        """
        while True:
            await self._vm.link.wait_for(_is_answering)
            with trio.move_on_after(seconds):
                try:
                    return await call()
                except (RemoteFault, RemoteProtocolError):
                    raise
                except VirtagentError as error:
                    log.debug("%s: %s; trying again", self._vm.name, error)
            await trio.sleep(AGAIN)


def _is_answering(status: Status) -> bool:
    return status.state in _ANSWERING


def _is_ready(status: Status) -> bool:
    return status.state is LinkState.READY


def _is_off(off: tuple[float, float] | None) -> bool:
    """Whether a clock is off for sure, however long the question was on its way."""
    return off is not None and (off[0] > TOLERANCE or off[1] < -TOLERANCE)


def _middle(off: tuple[float, float]) -> float:
    return (off[0] + off[1]) / 2
