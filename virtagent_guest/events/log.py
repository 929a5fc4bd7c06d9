"""The agent's events: those that the host does not have yet.

The rules:

1. An event that is put in gets the next number, and is kept until the host has confirmed it
   (`virtagent_protocol.events`).
2. There is room for so many, and so many bytes. What the agent itself sees has room of its own, which no
   program of the guest can take. The programs share theirs: when it is full, the user who holds most of it
   loses.
3. The *oldest* event of that user goes, not the newest. The last events say how things are now, and a host
   that comes back wants to know that first. And the newest event is always held, so that the gap in the
   numbers before it is sure to be seen: nothing is lost silently, even at the end.
4. What is here outlives the agent, if it was told where to keep it (`store`).
5. Nothing here waits, and nothing here knows the host: `deliver` does.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from virtagent_protocol.events import (
    BATCH_DATA_MAX,
    BATCH_EVENTS_MAX,
    USER_MAX,
    Batch,
    GuestEvent,
    check_name,
    data_text,
    parse_data,
)
from virtagent_protocol.text import visible_line
from virtagent_protocol.values import Struct

from ..local.caller import Caller
from .store import Store, StoreError

log = logging.getLogger("virtagent.events")

#: Events of the agent itself that are held, and characters of their data: a day of a busy guest's.
OWN_EVENTS_MAX, OWN_DATA_MAX = 1024, 256 * 1024
#: Of all programs of the guest together. Together with the above they are 5 MiB of memory at most.
EVENTS_MAX, DATA_MAX = 4096, 1024 * 1024

#: What holds the agent's own events, where others have a uid.
_OWN = -1


class _Held:
    """What one user holds: the numbers of its events, oldest first, and the characters of their data."""

    def __init__(self) -> None:
        self.numbers: deque[int] = deque()
        self.data = 0


class EventLog:
    """Events in order, until they are confirmed.

    Args:
        clock: the guest's, in seconds since 1970.

    Attributes:
        id: of this log: 16 hex digits.
        confirmed: the number up to which the host has them.
        on_event: called after each event that is put in; must return at once.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.id = secrets.token_hex(8)
        self.confirmed = 0
        self.on_event: Callable[[], None] = lambda: None
        self._next = 1
        #: Number → event, in order.
        self._events: dict[int, GuestEvent] = {}
        self._held: dict[int, _Held] = {}
        self._store: Store | None = None

    def __len__(self) -> int:
        return len(self._events)

    @property
    def last(self) -> int:
        """The number of the last event that was put in; 0: there was none yet."""
        return self._next - 1

    def emit(self, name: str, data: Struct | str, caller: Caller | None = None) -> int:
        """Put in an event that happens now, and return its number.

        Args:
            name: such as ``address.changed``; see `virtagent_protocol.events.NAME`.
            data: what JSON carries, or the JSON text of an object.
            caller: the program of the guest that caused it; None: the agent itself.

        Raises:
            LocalProtocolError: name or data cannot be those of an event.
        """
        check_name(name)
        # A text is written anew: in ASCII, and without spaces.
        text = data_text(parse_data(data) if isinstance(data, str) else data)
        who: Struct | None = None
        if caller is not None:
            # A name service may say anything.
            who = {**caller.to_value(), "user": visible_line(caller.user)[:USER_MAX]}
        event = GuestEvent(self._next, int(self._clock() * 1e6), name, text, who)
        self._add(event)
        self._write(lambda store: store.add(event))
        self.on_event()
        return event.sequence

    def batch(self) -> Batch:
        """Return the next events to send; there must be some."""
        events: list[GuestEvent] = []
        size = 0
        for event in self._events.values():
            size += len(event.data)
            if events and (len(events) == BATCH_EVENTS_MAX or size > BATCH_DATA_MAX):
                break
            events.append(event)
        return Batch(self.id, self.confirmed, events)

    def confirm(self, sequence: int) -> None:
        """The host has all events up to this number: forget them."""
        if not self.confirmed < sequence < self._next:
            return
        self.confirmed = sequence
        for event in list(self._events.values()):
            if event.sequence > sequence:
                break
            self._remove(event)
        self._write(lambda store: store.confirm(sequence))

    def keep(self, path: Path) -> None:
        """Keep the events in this file from now on, and go on with those that an agent before left there.

        What cannot be read is left out, with a warning; what cannot be written as well.
        """
        begun = list(self._events.values())
        store = Store(path)
        store.on_full = lambda: store.rewrite(self.id, self.confirmed, self._next, self._events.values())
        kept = None
        try:
            kept = store.load()
        except StoreError as error:
            log.warning("events of an agent before this one are lost: %s", error)
        if kept is not None:
            self.id, self.confirmed, self._next = kept.log, kept.confirmed, kept.next
            self._events.clear()
            self._held.clear()
            # Those that were put in since the agent began come last.
            for event in kept.events:
                self._add(event)
            for event in begun:
                self._add(replace(event, sequence=self._next))
            log.info("%d events of an agent before this one are still to be sent", len(kept.events))
        self._store = store
        self._write(lambda store: store.on_full())

    # --- What is held --------------------------------------------------------------------------------

    def _add(self, event: GuestEvent) -> None:
        self._next = event.sequence + 1
        self._events[event.sequence] = event
        held = self._held.setdefault(_owner(event), _Held())
        held.numbers.append(event.sequence)
        held.data += len(event.data)
        own = _owner(event) == _OWN
        while self._overfull(own):
            lost = self._events[self._loser(own, event.sequence).numbers[0]]
            self._remove(lost)
            # Or it would come back with an agent that is restarted, when the host has heard that it is lost.
            self._write(partial(Store.drop, sequence=lost.sequence))

    def _overfull(self, own: bool) -> bool:
        owners = [self._held[_OWN]] if own else [h for uid, h in self._held.items() if uid != _OWN]
        count, data = sum(len(held.numbers) for held in owners), sum(held.data for held in owners)
        return count > (OWN_EVENTS_MAX if own else EVENTS_MAX) or data > (OWN_DATA_MAX if own else DATA_MAX)

    def _loser(self, own: bool, newest: int) -> _Held:
        if own:
            return self._held[_OWN]
        # Rule 3: whoever holds nothing but the newest event does not lose it.
        owners = [h for uid, h in self._held.items() if uid != _OWN and h.numbers[0] != newest]
        return max(owners, key=lambda held: max(len(held.numbers) / EVENTS_MAX, held.data / DATA_MAX))

    def _remove(self, event: GuestEvent) -> None:
        del self._events[event.sequence]
        held = self._held[_owner(event)]
        held.numbers.popleft()
        held.data -= len(event.data)
        if not held.numbers:
            del self._held[_owner(event)]

    def _write(self, action: Callable[[Store], None]) -> None:
        if self._store is None:
            return
        try:
            action(self._store)
        except StoreError as error:
            log.warning("%s: an agent that is restarted will have forgotten its events", error)
            self._store.discard()
            self._store = None


def _owner(event: GuestEvent) -> int:
    if event.caller is None:
        return _OWN
    uid = event.caller["uid"]
    assert isinstance(uid, int)
    return uid


#: That of this process.
EVENTS = EventLog()
