"""One conversion that we have asked the owner of the clipboard for: TARGETS, or the bytes of a type.

It is driven by the events that concern it, and ends by calling `finish` once: with what came, or an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from Xlib import X

from ...errors import NotReady, VirtagentError
from ..backend import no_answer
from ..contents import Allowance, Blob
from ..mime import OFFERED_MAX
from .atoms import Atoms

#: Seconds without an event after which an owner is given up.
PATIENCE = 5.0
#: Seconds for all of it: an owner that sends a byte now and then must not hold us for ever.
WHOLE_TIME = 60.0
#: Units of 4 bytes taken from a property at a time.
_LENGTH = 64 * 1024

Finish = Callable[["Blob | list[str] | VirtagentError | None"], None]


class Incoming:
    """One conversion, asked for as soon as it is made.

    Args:
        window: ours; the owner puts the result on it.
        atoms: of the server.
        target: the type, as its owner spells it.
        number: the property has it in its name: what comes late is not taken for what was asked for next.
        allowance: bytes that may come; what is over it ends the conversion.
        finish: called with the bytes, with the names if the target is TARGETS, with None if the owner has
            nothing of that type, or with an error.
    """

    def __init__(
        self, window: Any, atoms: Atoms, target: str, number: int, allowance: Allowance, finish: Finish
    ) -> None:
        self._window, self._atoms, self._target = window, atoms, target
        self._allowance, self._finish = allowance, finish
        self._property = atoms[f"VIRTAGENT_{number}"]
        self._blob: Blob | None = None
        self._begun = self._heard = time.monotonic()
        self.done = False
        window.delete_property(self._property)
        window.convert_selection(atoms["CLIPBOARD"], atoms[target], self._property, X.CurrentTime)

    @property
    def deadline(self) -> float:
        """When `check` has something to say, by the monotonic clock."""
        return min(self._heard + PATIENCE, self._begun + WHOLE_TIME)

    def check(self, now: float) -> None:
        """Give up if it is time to."""
        if not self.done and now >= self.deadline:
            self.end(no_answer(f"its {self._target}", now - self._begun))

    def on_selection_notify(self, event: Any) -> None:
        """The owner has answered."""
        if self._blob is not None or event.target != self._atoms[self._target]:
            return
        if event.property == X.NONE:
            self.end(None)
        elif event.property == self._property:
            self._heard = time.monotonic()
            self._answered()

    def on_property_notify(self, event: Any) -> None:
        """A property of our window has changed."""
        # Before the answer, this tells only that there will be one.
        if self._blob is None or event.atom != self._property or event.state != X.PropertyNewValue:
            return
        self._heard = time.monotonic()
        if not self._take(self._blob):
            self.end(self._blob)

    def owner_is_gone(self) -> None:
        """The program that held the clipboard has ended."""
        self.end(NotReady("the program that held the clipboard ended in the middle of a transfer"))

    def end(self, result: Blob | list[str] | VirtagentError | None) -> None:
        """End with this result."""
        if not self.done:
            self.done = True
            self._window.delete_property(self._property)
            self._finish(result)

    def fail(self, error: VirtagentError) -> None:
        """End with an error that came from a lost connection: nothing can be said to the server."""
        if not self.done:
            self.done = True
            self._finish(error)

    def _answered(self) -> None:
        if self._target == "TARGETS":
            found = self._window.get_property(self._property, X.AnyPropertyType, 0, OFFERED_MAX)
            numbers = found.value if found is not None and found.format == 32 else []
            self.end(self._atoms.names(numbers))
            return
        found = self._window.get_property(self._property, X.AnyPropertyType, 0, 0)
        if found is None:
            self.end(None)
            return
        self._blob = Blob()
        if found.property_type == self._atoms["INCR"]:
            # The owner begins when we have removed this.
            self._window.delete_property(self._property)
        else:
            self._take(self._blob)
            self.end(self._blob)

    def _take(self, blob: Blob) -> bool:
        """Move what the property holds into the blob; return whether it held anything."""
        at = 0
        while True:
            found = self._window.get_property(self._property, X.AnyPropertyType, at, _LENGTH)
            if found is None or self.done:
                return True
            data = found.value if isinstance(found.value, bytes) else bytes(found.value)
            try:
                self._allowance.take(len(data))
                blob.append(data)
            except (VirtagentError, OSError) as error:
                self.end(error if isinstance(error, VirtagentError) else NotReady(str(error)))
                return True
            at += _LENGTH
            if not found.bytes_after:
                self._window.delete_property(self._property)
                return bool(data) or at > _LENGTH
