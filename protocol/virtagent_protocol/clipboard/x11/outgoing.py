"""What other programs ask of us while the clipboard is ours (ICCCM 2.2, 2.6, 2.7.2).

The rules:

1. All types that we have are offered, text under all its names.
2. What is larger than `CHUNK` goes in pieces (INCR): the next when its reader has removed the last.
3. Any program may ask, and none has to be nice: there are so many transfers at a time, each with a time in
   which its reader must go on; a reader that is gone is an X error, which nobody minds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from Xlib import X, Xatom
from Xlib.protocol.event import SelectionNotify

from ..contents import Blob, Contents
from ..mime import TEXT, TEXT_NAMES
from .atoms import Atoms

#: Bytes in one property; a request takes 256 KiB.
CHUNK = 128 * 1024
#: Seconds for a reader to take one piece.
PATIENCE = 20.0
#: Transfers at a time; the oldest gives way to one more. Each may keep contents in memory that are long
#: replaced.
TRANSFERS_MAX = 8
#: Bytes of text that is offered as STRING and TEXT, too: those are Latin-1, converted in one go.
_LATIN_MAX = 1024 * 1024
#: Pairs in one request for MULTIPLE.
_MULTIPLE_MAX = 32

_LATIN = ("STRING", "TEXT")


class _Transfer:
    def __init__(self, requestor: Any, where: int, kind: int, blob: Blob) -> None:
        self.requestor, self.where, self.kind, self.blob = requestor, where, kind, blob
        self.at = 0
        self.deadline = time.monotonic() + PATIENCE

    def next(self) -> bool:
        """Send the next piece; return whether it was the last, an empty one."""
        piece = self.blob.read(self.at, CHUNK)
        self.requestor.change_property(self.where, self.kind, 8, piece)
        self.at += len(piece)
        self.deadline = time.monotonic() + PATIENCE
        return not piece


class Outgoing:
    """What is given to those who ask.

    Args:
        display: connected.
        atoms: of its server.
    """

    def __init__(self, display: Any, atoms: Atoms) -> None:
        self._display, self._atoms = display, atoms
        #: What we offer; None: the clipboard is another program's.
        self.contents: Contents | None = None
        #: When we became the owner, in the server's time.
        self.since = X.CurrentTime
        self._transfers: dict[tuple[int, int], _Transfer] = {}

    @property
    def deadline(self) -> float | None:
        """When `check` has something to do."""
        return min((transfer.deadline for transfer in self._transfers.values()), default=None)

    def check(self, now: float) -> None:
        """Forget readers that do not go on."""
        for key, transfer in list(self._transfers.items()):
            if now >= transfer.deadline:
                self._forget(key)

    def on_request(self, event: Any) -> None:
        """A program wants the clipboard as some type."""
        # Old programs name no property; the target's name is meant (ICCCM 2.2).
        where = event.property or event.target
        served = self.contents is not None and event.selection == self._atoms["CLIPBOARD"]
        if served and event.target == self._atoms["MULTIPLE"]:
            served = self._serve_many(event.requestor, where)
        elif served:
            served = self._serve(event.requestor, event.target, where)
        notice = SelectionNotify(
            time=event.time,
            requestor=event.requestor,
            selection=event.selection,
            target=event.target,
            property=where if served else X.NONE,
        )
        event.requestor.send_event(notice)

    def on_property_deleted(self, window: Any, where: int) -> None:
        """A reader has taken a piece, if it is one of ours."""
        key = (window.id, where)
        if key in self._transfers and self._transfers[key].next():
            self._forget(key)

    def _serve_many(self, requestor: Any, where: int) -> bool:
        found = requestor.get_property(where, X.AnyPropertyType, 0, 2 * _MULTIPLE_MAX)
        if found is None or found.format != 32:
            return False
        pairs = list(found.value)
        for i in range(0, len(pairs) - 1, 2):
            if not self._serve(requestor, pairs[i], pairs[i + 1]):
                pairs[i + 1] = X.NONE
        requestor.change_property(where, self._atoms["ATOM_PAIR"], 32, pairs)
        return True

    def _serve(self, requestor: Any, target: int, where: int) -> bool:
        assert self.contents is not None
        if target == self._atoms["TARGETS"]:
            names = [*self._offers(self.contents), "TARGETS", "MULTIPLE", "TIMESTAMP"]
            requestor.change_property(where, Xatom.ATOM, 32, [self._atoms[name] for name in names])
            return True
        if target == self._atoms["TIMESTAMP"]:
            requestor.change_property(where, Xatom.INTEGER, 32, [self.since])
            return True
        for name in self._offers(self.contents):
            if target == self._atoms[name]:
                kind = "STRING" if name in _LATIN else name
                self._send(requestor, where, self._atoms[kind], self._blob(self.contents, name))
                return True
        return False

    def _offers(self, contents: Contents) -> Iterator[str]:
        for name, blob in contents.items():
            if name != TEXT:
                yield name
                continue
            for text in TEXT_NAMES:
                if text not in _LATIN or blob.size <= _LATIN_MAX:
                    yield text

    def _blob(self, contents: Contents, name: str) -> Blob:
        if name in _LATIN:
            text = contents[TEXT].bytes().decode(errors="replace")
            return Blob.of(text.encode("latin-1", errors="replace"))
        return contents[TEXT if name in TEXT_NAMES else name]

    def _send(self, requestor: Any, where: int, kind: int, blob: Blob) -> None:
        if blob.size <= CHUNK:
            requestor.change_property(where, kind, 8, blob.bytes())
            return
        while len(self._transfers) >= TRANSFERS_MAX:
            self._forget(next(iter(self._transfers)))
        # Before the property is there, so that its removal is not missed.
        requestor.change_attributes(event_mask=X.PropertyChangeMask)
        requestor.change_property(where, self._atoms["INCR"], 32, [min(blob.size, 2**31 - 1)])
        self._transfers[(requestor.id, where)] = _Transfer(requestor, where, kind, blob)

    def _forget(self, key: tuple[int, int]) -> None:
        transfer = self._transfers.pop(key)
        if not any(window == key[0] for window, _ in self._transfers):
            transfer.requestor.change_attributes(event_mask=X.NoEventMask)
