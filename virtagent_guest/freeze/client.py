"""The agent's side of a freeze: starts a freezer (`process`), asks it, and hears from it when it thaws.

The rules:

1. One freeze at a time, whoever asks for it.
2. From the first word to the freezer until it has thawed, `holding` is set: the agent refuses what would
   write (`gate`), and keeps its log lines to itself (`logs.hold`): a write to a file system that is frozen,
   or to a journal on one, would stop the whole agent.
3. A freeze whose caller gives up is undone before the caller goes on.
4. A freezer that ends without a word was killed. Then another one thaws everything.
"""

from __future__ import annotations

import logging
import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from virtagent_protocol import logs

from .connection import Freezer, Thawed
from .hooks import HookSettings
from .process import SOCKET

log = logging.getLogger("virtagent.freeze")

#: Seconds for a freezer to start: Python takes two of them where there is no KVM and much else to do.
START_TIMEOUT = 30.0
#: Seconds for a freeze to be undone whose caller gave up; the freezer goes on after that.
UNDO_TIMEOUT = 60.0
_CODE = (
    "import sys; sys.path[:0] = sys.argv.pop(1).split(':');"
    " from virtagent_guest.freeze.process import main; sys.exit(main(sys.argv[1:]))"
)


class FreezeError(Exception):
    """Freezing or thawing failed; the text names what did.

    Attributes:
        not_now: whether it may work later.
    """

    def __init__(self, text: str, *, not_now: bool = False) -> None:
        super().__init__(text)
        self.not_now = not_now


@dataclass(frozen=True)
class Frozen:
    """A freeze that stands.

    Attributes:
        mounts: mount points of what is frozen.
        skipped: why something else is not.
        lease: seconds without `renew` after which it ends; infinite: it does not.
        duration: seconds after which it ends in any case.
        since: `time.time` of its begin.
    """

    mounts: tuple[str, ...]
    skipped: tuple[str, ...]
    lease: float
    duration: float
    since: float = field(default_factory=time.time)

    def __str__(self) -> str:
        number = len(self.mounts)
        until = "without a lease" if math.isinf(self.lease) else f"with a lease of {self.lease:g} s"
        return f"{number} file system{'s are' if number != 1 else ' is'} frozen, {until}"


class FreezeClient:
    """The freezes of this agent.

    Args:
        hooks: which hooks a freezer calls that is started here. One that systemd starts reads the
            configuration.
        address: the unix socket where systemd listens for a freezer.

    Attributes:
        frozen: the freeze that stands, or None.
        holding: whether one stands, begins or ends (rule 2).
        last: how the last one ended.
        listeners: called after each change of the attributes.
    """

    def __init__(self, hooks: HookSettings | None = None, address: str = SOCKET) -> None:
        self.hooks = hooks or HookSettings()
        self.address = address
        self.frozen: Frozen | None = None
        self.holding = False
        self.last: Thawed | None = None
        self.listeners: list[Callable[[], None]] = []
        self._nursery: trio.Nursery | None = None
        self._lock = trio.Lock()
        self._freezer: Freezer | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be there for freezes, until cancelled. What is frozen then is thawed by its freezer."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def freeze(
        self, mountpoints: Sequence[str] | None = None, *, lease: float = math.inf, duration: float = math.inf
    ) -> Frozen:
        """Freeze the file systems that lie on block devices, all or those at these mount points.

        Cancelling it undoes it.

        Args:
            mountpoints: others than those of the mount table are ignored.
            lease, duration: as in `Frozen`.

        Returns:
            What is frozen. If that is nothing, no freeze stands.

        Raises:
            FreezeError: one stands already, or it failed. Nothing is frozen by it then.
        """
        async with self._lock:
            if self.holding:
                raise FreezeError("file systems are frozen already: thaw them first", not_now=True)
            self._hold()
            try:
                freezer = self._freezer = await self._start()
                times = {"lease": _finite(lease), "duration": _finite(duration)}
                request = {"do": "freeze", "mountpoints": mountpoints and list(mountpoints), **times}
                answer = await freezer.ask(request)
                if "error" in answer:
                    raise FreezeError("; ".join([answer["error"], *answer["failures"]]))
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._undo()
                raise
            if not answer.get("frozen"):
                # It has ended before it was complete, or there was nothing to freeze.
                await freezer.gone.wait()
            if "frozen" not in answer:
                raise FreezeError(f"not frozen: {self.last.why if self.last else 'the freezer has ended'}")
            frozen = Frozen(tuple(answer["frozen"]), tuple(answer["skipped"]), lease, duration)
            if self.holding:
                self.frozen = frozen
                self._changed()
            return frozen

    async def renew(self) -> float:
        """Begin the lease of the freeze anew, and return the seconds that it has left.

        Raises:
            FreezeError: nothing is frozen.
        """
        freezer = self._freezer
        if self.frozen is None or freezer is None:
            raise FreezeError(f"nothing is frozen{self._last_words()}", not_now=True)
        answer = await freezer.ask({"do": "renew"})
        if "renewed" not in answer:
            raise FreezeError(f"nothing is frozen{self._last_words()}", not_now=True)
        left = answer["renewed"]
        return float(left)

    async def thaw(self) -> Thawed:
        """End the freeze that stands; without one, thaw whatever somebody else has frozen.

        Raises:
            FreezeError: no freezer could be started.
        """
        freezer = self._freezer
        if self.holding and freezer is not None:
            await freezer.ask({"do": "thaw"})
            await freezer.gone.wait()
            assert self.last is not None
            return self.last
        async with self._lock:
            return await self._thaw_everything()

    def _last_words(self) -> str:
        return f": the last freeze has ended, {self.last.why}" if self.last else ""

    async def _thaw_everything(self) -> Thawed:
        freezer = await self._start()
        try:
            answer = await freezer.ask({"do": "thaw"})
            return Thawed(answer.get("thawed", 0) + freezer.recovered, "asked")
        finally:
            freezer.end()

    async def _undo(self) -> None:
        """Let a freeze that failed, or that nobody wants any more, come to its end."""
        if self._freezer is None:
            self._release()
            return
        freezer = self._freezer
        freezer.end()
        with trio.move_on_after(UNDO_TIMEOUT):
            await freezer.gone.wait()

    # --- Freezers --------------------------------------------------------------------------------

    async def _start(self) -> Freezer:
        if self._nursery is None:
            raise FreezeError("the agent does not serve freezes yet", not_now=True)
        try:
            stream, process = await self._connect()
        except OSError as error:
            raise FreezeError(f"the freezer could not be started: {error.strerror or error}") from None
        freezer = Freezer(stream, process)
        self._nursery.start_soon(self._watch, freezer)
        usable = False
        try:
            with trio.move_on_after(START_TIMEOUT):
                await freezer.ready.wait()
            usable = freezer.ready.is_set() and not freezer.gone.is_set()
        finally:
            if not usable:
                # The caller may have given up, too: a freezer that waits for us keeps all others waiting.
                freezer.end()
        if not usable:
            raise FreezeError(
                f"no freezer answered within {START_TIMEOUT:g} s: is another freeze under way, "
                "or does va-guest-freezer.service fail?",
                not_now=True,
            )
        return freezer

    async def _connect(self) -> tuple[trio.SocketStream, trio.Process | None]:
        try:
            return await trio.open_unix_socket(self.address), None
        except OSError:
            pass  # not by systemd, then: as our child, which dies only if somebody kills this very process
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-c", _CODE, ":".join(sys.path), *self._arguments()],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                )
            except BaseException:
                ours.close()
                raise
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), process

    def _arguments(self) -> list[str]:
        hooks = self.hooks
        return [
            *("serve", "--hook", hooks.hook, "--hook-dir", hooks.directory),
            *("--hook-timeout", str(hooks.timeout)),
        ]

    async def _watch(self, freezer: Freezer) -> None:
        """Read what a freezer says until it has ended, and take note of its end."""
        try:
            async with freezer.stream:
                await freezer.read()
            if freezer.process is not None:
                # It has nothing frozen any more, or was killed; a hook that hangs is killed by it.
                await freezer.process.wait()
            if self._freezer is freezer:
                await self._note_end(freezer)
        finally:
            freezer.gone.set()

    async def _note_end(self, freezer: Freezer) -> None:
        self._freezer = None
        end = freezer.end_told
        if end is None and freezer.asked_to_freeze and not freezer.failed:
            end = await self._rescue()
        self.last = end or self.last
        was_frozen, self.frozen = self.frozen, None
        self._release()
        if was_frozen is not None and end is not None:
            log.log(
                logging.INFO if end.why == "asked" else logging.WARNING,
                "thawed %s: %s",
                f"{end.count} file systems",
                "; ".join([end.why, *end.failures]),
            )

    async def _rescue(self) -> Thawed:
        try:
            thawed = await self._thaw_everything()
        except FreezeError as error:
            return Thawed(0, f"the freezer was killed, and nobody could take its place: {error}")
        return Thawed(thawed.count, "the freezer was killed; another one has thawed everything")

    # --- State -----------------------------------------------------------------------------------

    def _hold(self) -> None:
        self.holding = True
        log.info("freezing file systems; the log goes on when they are thawed")
        logs.hold()
        self._changed()

    def _release(self) -> None:
        if self.holding:
            self.holding = False
            logs.release()
            self._changed()

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()


def _finite(seconds: float) -> float | None:
    """Return seconds as JSON has them: it has no infinity."""
    return None if math.isinf(seconds) else seconds


#: The freezes of this process.
FREEZER = FreezeClient()
