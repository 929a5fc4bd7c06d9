"""A program that holds an X server's clipboard and does not play by the rules: it stops in the middle.

It speaks X11 by itself, so nothing of ours helps it.
"""

from __future__ import annotations

import select
import time
from enum import Enum

from Xlib import X, Xatom
from Xlib.display import Display
from Xlib.protocol.event import SelectionNotify

#: Seconds to be asked.
DEADLINE = 20.0
_SIZE = 1024 * 1024


class Manner(Enum):
    """In which way it is rude."""

    #: It sends a piece and ends.
    VANISH = "vanish"
    #: It sends a piece, and no other.
    STALL = "stall"
    #: It does not answer at all.
    SILENT = "silent"


class RudeOwner:
    """Holds the clipboard of a display from when it is made; `serve` it in a thread."""

    def __init__(self, name: str, manner: Manner) -> None:
        self._manner = manner
        self._display = Display(name)
        self._window = self._display.screen().root.create_window(0, 0, 1, 1, 0, X.CopyFromParent)
        self._window.set_selection_owner(self._atom("CLIPBOARD"), X.CurrentTime)
        self._display.sync()

    def serve(self) -> None:
        """Answer until it has been rude; raises TimeoutError if nobody asks."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            while self._display.pending_events():
                if self._handle(self._display.next_event()):
                    return
            self._display.flush()
            select.select([self._display.fileno()], [], [], 0.1)
        raise TimeoutError("nobody asked for the clipboard")

    def close(self) -> None:
        """End, and the clipboard with it."""
        self._display.close()

    def _handle(self, event: object) -> bool:
        kind = getattr(event, "type", None)
        if kind == X.SelectionRequest:
            return self._answer(event)
        if kind == X.PropertyNotify and event.state == X.PropertyDelete:  # type: ignore[attr-defined]
            window, where = event.window, event.atom  # type: ignore[attr-defined]
            window.change_property(where, self._atom("UTF8_STRING"), 8, b"x" * 4096)
            self._display.sync()
            if self._manner is Manner.VANISH:
                self.close()
            return True
        return False

    def _answer(self, event: object) -> bool:
        requestor, where, target = event.requestor, event.property, event.target  # type: ignore[attr-defined]
        if target == self._atom("TARGETS"):
            requestor.change_property(where, Xatom.ATOM, 32, [self._atom("UTF8_STRING")])
        elif self._manner is Manner.SILENT:
            return True
        else:
            requestor.change_attributes(event_mask=X.PropertyChangeMask)
            requestor.change_property(where, self._atom("INCR"), 32, [_SIZE])
        requestor.send_event(
            SelectionNotify(
                time=event.time,  # type: ignore[attr-defined]
                requestor=requestor,
                selection=event.selection,  # type: ignore[attr-defined]
                target=target,
                property=where,
            )
        )
        return False

    def _atom(self, name: str) -> int:
        return int(self._display.intern_atom(name))
