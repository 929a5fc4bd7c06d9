"""What a link tells of itself: its state, to whoever asks, waits or was to be told; its last error."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from .linkstate import LinkEvent, LinkState, LinkStateMachine, Status
from .values import Struct


class Observed:
    """The part of a link that its owner watches; links are made on top of it.

    Args:
        on_status: called with each new status; must return at once.
    """

    def __init__(self, on_status: Callable[[Status], None]) -> None:
        self._on_status = on_status
        self._machine = LinkStateMachine(time.time())
        self._status_changed = trio.Event()
        #: What went wrong last, and when (`time.time`).
        self._last_error: tuple[str, float] | None = None

    @property
    def status(self) -> Status:
        """State, reason and since when."""
        return self._machine.status

    async def wait_for(self, wanted: Callable[[Status], bool]) -> Status:
        """Wait until a status is wanted, and return it."""
        while not wanted(self.status):
            await self._status_changed.wait()
        return self.status

    def note_error(self, text: str) -> None:
        """Remember what went wrong, for `va_status`."""
        self._last_error = (text, time.time())

    def pause(self, reason: str) -> None:
        """The VM was stopped: nothing is declared dead until `resume`."""
        self._notify(self._machine.pause(reason, time.time()))

    def resume(self) -> None:
        """The VM runs again."""
        self._notify(self._machine.resume())

    @property
    def _below(self) -> LinkState:
        """The state beneath that of a VM which is stopped."""
        return self._machine.below.state

    def _error_figures(self) -> Struct:
        text, at = self._last_error or (None, None)
        return {"last-error": text, "last-error-at": at}

    def _change(self, event: LinkEvent, reason: str) -> bool:
        """Enter the state that follows, and return whether it is another; `_notify` tells of it."""
        return self._machine.apply(event, reason, time.time())

    def _apply(self, event: LinkEvent, reason: str) -> None:
        self._notify(self._change(event, reason))

    def _notify(self, changed: bool) -> None:
        if changed:
            self._status_changed.set()
            self._status_changed = trio.Event()
            self._on_status(self.status)
