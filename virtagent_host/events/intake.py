"""`va.events`: events of a guest come in.

The rules:

1. A guest is believed nothing but its own words: shapes and sizes are checked (`virtagent_protocol.events`),
   and it gets no more than so many events a second. One call at a time; a second one is refused. So whatever
   it floods costs its own va-host a bounded part of its time, and other VMs nothing.
2. What is confirmed is in the journal. What is sent again, because its answer was lost, is known by its
   number and dropped. So an event is there once, whichever end was killed when.
3. Numbers that are missing are events that are lost in the guest: an entry of its own says how many.
4. A guest may be taken back to an earlier state (a snapshot is loaded): then it gives numbers again that it
   has given already, to other events. That is seen, since the event that is here by that number has another
   time; and its events are taken as the new ones that they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import trio

from virtagent_protocol.bucket import TokenBucket
from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.events import BATCH_EVENTS_MAX, METHOD, Batch, GuestEvent, parse_data
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Value

from . import GUEST_EVENT, GUEST_EVENTS_LOST
from .journal import Entry, Journal, JournalError

#: Events of one VM: so many at once, then so many a second; one with much data counts as several.
BURST, RATE = 2000, 100.0
#: Characters of data that count as an event more.
DATA_OF_ONE = 1024
#: Seconds between looks whether a guest that has told too much may go on: a few events each time.
PAUSE = 0.25
#: Events whose times are known: what is sent again is one batch at most.
REMEMBERED = 4 * BATCH_EVENTS_MAX


class GuestEvents:
    """The events of one VM.

    Args:
        name: the VM's.
        journal: the path of its journal; None: what is kept goes with this process.
        emit: tells clients of the bridge: name and data of an event.
    """

    def __init__(
        self, name: str, journal: Path | None, emit: Callable[[str, dict[str, object]], None]
    ) -> None:
        self._name = name
        self._emit = emit
        self.journal = Journal(journal)
        self._bucket = TokenBucket(BURST, RATE)
        self._busy = False
        #: The log of the last event that is in the journal, and its number.
        self._log, self._sequence = "", 0
        #: Number → time, of the last events of that log.
        self._times: dict[int, str] = {}
        for entry in self.journal.read(max(self.journal.last - REMEMBERED, 0), REMEMBERED):
            self._remember(entry)

    def methods(self) -> Registry:
        """Return what the guest may call."""
        registry = Registry()

        @registry.method(METHOD)
        async def events(call: Call, batch: dict[str, Value]) -> dict[str, Value]:
            """Take events of the guest: log, confirmed, events.

            Returns confirmed: the number up to which they are here; the guest may forget those.
            """
            if self._busy:
                raise Fault(FaultCode.NOT_READY, "the events before these are still being taken")
            self._busy = True
            try:
                return {"confirmed": await self._take(Batch.from_value(batch))}
            except RemoteProtocolError as error:
                raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None
            except JournalError as error:
                raise Fault(FaultCode.NOT_READY, str(error)) from None
            finally:
                self._busy = False

        return registry

    def read(self, since: int, count: int) -> dict[str, object]:
        """Return what is held behind a position: the answer of `va_events`."""
        held = self.journal.read(since, count)
        return {
            "events": held,
            "next": held[-1]["position"] if held else max(since, self.journal.oldest - 1),
            "last": self.journal.last,
            "oldest": self.journal.oldest,
            "missed": max(self.journal.oldest - 1 - since, 0),
        }

    async def _take(self, batch: Batch) -> int:
        before, new = self._news(batch)
        if not new:
            return before
        taken = await self._within_rate(new)
        entries: list[dict[str, Any]] = []
        received = _text(time.time_ns() // 1000)
        for event in taken:
            if event.sequence > before + 1:
                lost = event.sequence - before - 1
                entries.append(
                    {"received": received, "log": batch.log, "sequence": event.sequence - 1, "lost": lost}
                )
            entries.append({"received": received, **_entry(batch.log, event)})
            before = event.sequence
        # Nothing from here on waits: what is in the journal is told, or nobody would look for it there.
        for entry in self.journal.append(entries):
            self._remember(entry)
            self._emit(GUEST_EVENTS_LOST if "lost" in entry else GUEST_EVENT, {"name": self._name, **entry})
        return before

    def _news(self, batch: Batch) -> tuple[int, list[GuestEvent]]:
        """Return the number before the next event, and the events that are not here yet."""
        events = list(batch.events)
        if batch.log != self._log:
            return batch.confirmed, events
        if any(self._is_other(event) for event in events):
            return events[0].sequence - 1, events  # rule 4
        before = max(self._sequence, batch.confirmed)
        return before, [event for event in events if event.sequence > before]

    async def _within_rate(self, events: list[GuestEvent]) -> list[GuestEvent]:
        """Return as many of the events as may come in now, at least one; wait for that."""
        taken: list[GuestEvent] = []
        while not taken:
            for event in events:
                if not self._bucket.take(trio.current_time()):
                    break
                for _ in range(len(event.data) // DATA_OF_ONE):
                    self._bucket.take(trio.current_time())
                taken.append(event)
            else:
                break
            if not taken:
                await trio.sleep(PAUSE)
        return taken

    def _is_other(self, event: GuestEvent) -> bool:
        """Whether its number is that of another event, which is here already."""
        return event.sequence <= self._sequence and self._times.get(event.sequence) != _text(event.time)

    def _remember(self, entry: Entry) -> None:
        if entry["log"] != self._log or entry["sequence"] <= self._sequence:
            self._times.clear()
        self._log, self._sequence = entry["log"], entry["sequence"]
        if "time" in entry:
            self._times[self._sequence] = entry["time"]
            if len(self._times) > REMEMBERED:
                del self._times[next(iter(self._times))]


def _entry(log: str, event: GuestEvent) -> dict[str, Any]:
    return {
        "log": log,
        "sequence": event.sequence,
        "time": _text(event.time),
        "event": event.name,
        "data": parse_data(event.data),
        **({} if event.caller is None else {"caller": event.caller}),
    }


def _text(microseconds: int) -> str:
    """Return a time as RFC 3339 has it, in UTC; nothing of it is lost."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return (
        datetime.fromtimestamp(seconds, timezone.utc)
        .replace(microsecond=rest)
        .isoformat(timespec="microseconds")
    )
