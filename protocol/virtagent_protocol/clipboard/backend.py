"""What every clipboard can do, and which one a process has.

The rules:

1. A process has the clipboard that its environment names: Wayland's if WAYLAND_DISPLAY is set and the
   compositor lets programs without a window see the clipboard, else X11's by DISPLAY (under Wayland that is
   Xwayland's, which the compositor keeps alike).
2. A change is a number that grew, whoever changed what: a waiter that was busy misses none, and needs no
   queue.
3. What a backend has set comes back from `read` as it was set, as long as it is still there. So whoever
   compares sees no change in what it set itself.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from ..errors import CallTimeout, NotThere, VirtagentError
from .contents import SIZE_MAX, Contents
from .mime import PATTERNS


class Backend(ABC):
    """A clipboard. Many tasks may use it; it takes one after another."""

    def __init__(self) -> None:
        self._changes = 0
        self._changed = trio.Event()
        self._lost: VirtagentError | None = None

    @abstractmethod
    async def offered(self) -> list[str]:
        """Return the names of the types that the clipboard holds, as its owner spells them.

        Raises:
            VirtagentError: as `read`.
        """

    @abstractmethod
    async def read(self, patterns: Sequence[str] = PATTERNS, limit: int = SIZE_MAX) -> Contents:
        """Return what the clipboard holds of the types that fit.

        Raises:
            TooLarge: it holds more than *limit* bytes.
            CallTimeout: the program that holds it does not answer.
            NotReady: that program ended meanwhile, or the clipboard kept changing.
            LinkBroken: the display has ended.
        """

    @abstractmethod
    async def write(self, contents: Contents) -> None:
        """Put these contents there; they stay until another program sets others, or this process ends.

        Raises:
            VirtagentError: it cannot be set.
        """

    async def fetch(self, patterns: Sequence[str], limit: int, known: Contents) -> Contents:
        """Return what `read` does; this makes a backend a `sync.Side`."""
        return await self.read(patterns, limit)

    @property
    def changes(self) -> int:
        """How often the clipboard has changed, as far as is known."""
        return self._changes

    async def wait_change(self, seen: int) -> int:
        """Return the number of changes once it is another than *seen*.

        Raises:
            LinkBroken: the display has ended.
        """
        while self._changes == seen:
            if self._lost is not None:
                raise self._lost
            await self._changed.wait()
        return self._changes

    async def wait_lost(self) -> VirtagentError:
        """Return why the display is of no use any more, once that is so."""
        while self._lost is None:
            await self._changed.wait()
        return self._lost

    @property
    def lost(self) -> VirtagentError | None:
        """Why the display is of no use any more; None: it is."""
        return self._lost

    def _note_change(self) -> None:
        self._changes += 1
        self._wake()

    def _lose(self, error: VirtagentError) -> None:
        self._lost = self._lost or error
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def open_clipboard(environ: Mapping[str, str] = os.environ) -> AsyncIterator[Backend]:
    """Connect to the clipboard of this process's display.

    Raises:
        NotThere: there is no display, or what is needed to use its clipboard is not installed, or the
            compositor does not let programs use it; the message says which, and what to do.
        Forbidden: the X server does not let us in.
        CallTimeout: it does not answer.
    """
    refused: NotThere | None = None
    if environ.get("WAYLAND_DISPLAY"):
        from .wayland import open_wayland

        try:
            async with open_wayland(environ) as wayland:
                yield wayland
                return
        except Unusable as error:
            if not environ.get("DISPLAY"):
                raise
            refused = error
    if environ.get("DISPLAY"):
        from .x11 import open_x11

        async with open_x11(environ["DISPLAY"]) as x11:
            yield x11
            return
    raise refused or NotThere(
        "there is no display: neither WAYLAND_DISPLAY nor DISPLAY is set in the environment of this program"
    )


class Unusable(NotThere):
    """The display is there, and its clipboard is not for us."""


def no_answer(what: str, seconds: float) -> CallTimeout:
    """Return the error for a program that holds the clipboard and does not give it away."""
    return CallTimeout(f"the program that holds the clipboard has not sent {what} within {seconds:g} s")
