"""One connection to an X server, as its thread sees it: events in, conversions in and out.

Nothing here is called from any other thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from Xlib import X, Xatom
from Xlib.display import Display
from Xlib.error import ConnectionClosedError, DisplayError, XauthError
from Xlib.ext import xfixes

from ...errors import Forbidden, LinkBroken, NotReady, NotThere, VirtagentError
from ..contents import Allowance, Contents
from .atoms import Atoms
from .incoming import Finish, Incoming
from .outgoing import Outgoing

#: Properties used in turn.
_PROPERTIES = 16
#: What ends the connection.
CONNECTION_ERRORS = (ConnectionClosedError, OSError)

_EVENTS = (
    xfixes.XFixesSetSelectionOwnerNotifyMask
    | xfixes.XFixesSelectionWindowDestroyNotifyMask
    | xfixes.XFixesSelectionClientCloseNotifyMask
)


def connect(name: str) -> Any:
    """Connect to the display of that name. Raises VirtagentError, as `open_clipboard`."""
    try:
        return Display(name)
    except XauthError as error:
        raise Forbidden(f"the X server of display {name} does not let us in: {error}") from None
    except (DisplayError, *CONNECTION_ERRORS) as error:
        text = str(error)
        if "uthoriz" in text or "No protocol specified" in text:
            raise Forbidden(
                f"the X server of display {name} does not let us in: set XAUTHORITY, or run this as the user "
                "whose display it is"
            ) from None
        raise NotThere(f"no X server can be reached as display {name}: {text}") from None


class Screen:
    """One connection.

    Args:
        display: connected.
        name: of it.
        on_change: called when the clipboard has another owner, or none.
    """

    def __init__(self, display: Any, name: str, on_change: Callable[[], None]) -> None:
        self.display, self._name, self._on_change = display, name, on_change
        # An error of a request without an answer: some other program's window is gone.
        display.set_error_handler(lambda error, request: None)
        if not display.has_extension("XFIXES"):
            raise NotThere(f"the X server of display {name} has no extension XFIXES, which tells of changes")
        display.xfixes_query_version()
        self.atoms = Atoms(display)
        screen = display.screen()
        self._window = screen.root.create_window(
            -10, -10, 1, 1, 0, X.CopyFromParent, event_mask=X.PropertyChangeMask
        )
        self._window.change_property(Xatom.WM_NAME, Xatom.STRING, 8, b"virtagent clipboard")
        display.xfixes_select_selection_input(self._window, self.atoms["CLIPBOARD"], _EVENTS)
        self._outgoing = Outgoing(display, self.atoms)
        self._incoming: Incoming | None = None
        self._number = 0
        display.flush()

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return int(self.display.fileno())

    @property
    def timeout(self) -> float | None:
        """Seconds until `check` has something to do."""
        deadlines = [self._outgoing.deadline, self._incoming.deadline if self._incoming else None]
        due = min((deadline for deadline in deadlines if deadline is not None), default=None)
        return None if due is None else max(due - time.monotonic(), 0.0)

    def run_once(self) -> None:
        """Handle what is due, and all events that are there. Raises `CONNECTION_ERRORS`."""
        now = time.monotonic()
        self._outgoing.check(now)
        if self._incoming is not None:
            self._incoming.check(now)
        # Whatever python-xlib sends or waits for, it takes in events meanwhile, which poll then does not
        # tell of.
        while True:
            self.display.flush()
            count = self.display.pending_events()
            if not count:
                return
            for _ in range(count):
                self._handle(self.display.next_event())

    # --- What the clipboard asks for -------------------------------------------------------------------

    @property
    def own(self) -> Contents | None:
        """What we have set, if it is there still: the server knows before we have read that it is not."""
        return self._outgoing.contents if self._is_ours() else None

    def convert(self, target: str, allowance: Allowance, finish: Finish) -> None:
        """Ask the owner for a type; see `Incoming`."""
        if self._incoming is not None and not self._incoming.done:
            self._incoming.end(NotReady("another conversion took its place"))
        if self.display.get_selection_owner(self.atoms["CLIPBOARD"]) == X.NONE:
            finish(None)
            return
        self._number = (self._number + 1) % _PROPERTIES
        self._incoming = Incoming(self._window, self.atoms, target, self._number, allowance, finish)

    def forget(self) -> None:
        """Nobody waits for the conversion any more."""
        if self._incoming is not None:
            self._incoming.end(None)

    def own_clipboard(self, contents: Contents) -> None:
        """Become the owner. Raises NotReady: another program took it at the same moment."""
        clipboard = self.atoms["CLIPBOARD"]
        self._outgoing.contents = contents
        self._window.set_selection_owner(clipboard, X.CurrentTime)
        if not self._is_ours():
            self._outgoing.contents = None
            raise NotReady(f"another program took the clipboard of display {self._name} at the same moment")

    def _is_ours(self) -> bool:
        owner = self.display.get_selection_owner(self.atoms["CLIPBOARD"])
        return bool(owner != X.NONE and owner.id == self._window.id)

    def fail(self, error: VirtagentError) -> None:
        """The connection is lost."""
        if self._incoming is not None:
            # Its window is gone as well; only the word is left to be said.
            self._incoming.fail(error)

    def lost(self, error: Exception) -> LinkBroken:
        """Return the error for a lost connection."""
        return LinkBroken(f"the X server of display {self._name} has ended: {error}")

    # --- Events ----------------------------------------------------------------------------------------

    def _handle(self, event: Any) -> None:
        if event.type == X.SelectionRequest:
            self._outgoing.on_request(event)
        elif event.type == X.SelectionClear:
            self._outgoing.contents = None
        elif event.type == X.SelectionNotify:
            if self._incoming is not None and not self._incoming.done:
                self._incoming.on_selection_notify(event)
        elif event.type == X.PropertyNotify:
            if event.window.id != self._window.id:
                if event.state == X.PropertyDelete:
                    self._outgoing.on_property_deleted(event.window, event.atom)
            elif self._incoming is not None and not self._incoming.done:
                self._incoming.on_property_notify(event)
        elif isinstance(event, xfixes.SelectionNotify):
            self._on_owner(event)

    def _on_owner(self, event: Any) -> None:
        if event.sub_code != xfixes.XFixesSetSelectionOwnerNotify and self._incoming is not None:
            self._incoming.owner_is_gone()
        if event.owner != X.NONE and event.owner.id == self._window.id:
            self._outgoing.since = event.selection_timestamp
        self._on_change()
