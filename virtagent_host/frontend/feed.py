"""Events of VMs, QEMU's, `VA_*` and the guests', as one stream that loses none of the guests' own.

The rules:

1. A thread for each VM reads its bridge and puts what comes into one bounded queue. Whoever takes from that
   slowly slows the threads down, and nothing else.
2. The guest's events have positions. The feed knows the last one that it has handed on; what is behind that
   it asks for when it connects, and whenever a position is missing (`va_events`). So each comes once and in
   order, also if va-host was away in between, or left some out because we did not read.
3. QEMU's events and the other `VA_*` are not kept by anybody: those of the time between are lost.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from virtagent_protocol.errors import CallTimeout, FailureKind, VirtagentError
from virtagent_protocol.text import visible_line

from ..events import GUEST_EVENT, GUEST_EVENTS_LOST
from ..runtime import BRIDGE_SUFFIX, RuntimeDir
from .client import CONNECT_TIMEOUT, VmClient
from .output import PROGRAM

#: Events that wait to be taken.
WAITING_MAX = 256
#: Seconds between attempts to reach a va-host that is away, and between looks for VMs that are new.
RETRY = 0.5
#: Events asked for at a time.
_COUNT = 200

Event = dict[str, Any]


@dataclass(frozen=True)
class FromVm:
    """An event of one VM; or, without an event, word of its feed.

    Attributes:
        vm: its name.
        event: as on the bridge: event, data, timestamp.
        position: of a guest's event; or where the feed begins.
        ended: whether this is the end of the feed.
        error: why it has ended; None: va-host has closed it.
    """

    vm: str
    event: Event | None = None
    position: int | None = None
    ended: bool = False
    error: VirtagentError | None = None


@dataclass
class Feeds:
    """The events of several VMs.

    Args:
        runtime: where they are.
        since: the position behind which events are asked for; None: from now on.
        known: VM → that position, for those for which it is another.
        follow: whether to wait for a va-host that is not there, or not any more.
    """

    runtime: RuntimeDir
    since: int | None = None
    follow: bool = False
    known: Mapping[str, int] = field(default_factory=dict)
    _queue: queue.Queue[FromVm] = field(default_factory=lambda: queue.Queue(WAITING_MAX))
    _names: set[str] = field(default_factory=set)
    _closed: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str) -> None:
        """Read the events of this VM, too."""
        if name not in self._names:
            self._names.add(name)
            threading.Thread(target=_Feed(self, name).run, name=name, daemon=True).start()

    def add_all(self) -> None:
        """Read the events of all VMs that are attached, and of those that will be."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def events(self, timeout: float | None = None) -> Iterator[FromVm]:
        """Yield events as they come, and once for each VM where its feed begins.

        Without *follow* this ends when the feed of every VM has.

        Args:
            timeout: seconds for all of this.

        Raises:
            CallTimeout: they have passed.
            VirtagentError: the first feed that failed did so with this.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = 0
        while ended < len(self._names) or self.follow:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            try:
                item = self._queue.get(timeout=left)
            except queue.Empty:
                names = ", ".join(sorted(self._names))
                raise CallTimeout(f"no such event of '{names}' within {timeout:g} s") from None
            if item.error is not None:
                raise item.error
            if item.ended:
                ended += 1
            else:
                yield item

    def close(self) -> None:
        """Let the threads end, each with the connection that it has."""
        self._closed.set()

    def closed(self, within: float) -> bool:
        """Wait so many seconds for `close`; whether it was called."""
        return self._closed.wait(within)

    def put(self, item: FromVm) -> None:
        """Hand an item on; wait while many are waiting."""
        self._queue.put(item)

    def _watch(self) -> None:
        while not self.closed(RETRY):
            try:
                files = os.listdir(self.runtime.path)
            except OSError:
                files = []
            for file in sorted(files):
                if file.endswith(BRIDGE_SUFFIX) and not file.startswith("."):
                    self.add(file.removesuffix(BRIDGE_SUFFIX))


class _Feed:
    """The feed of one VM, in a thread of its own."""

    def __init__(self, feeds: Feeds, name: str) -> None:
        self._feeds = feeds
        self._name = name
        self._position = feeds.known.get(name, feeds.since)
        self._told = False

    def run(self) -> None:
        closed = False
        while not closed:
            try:
                self._read()
                error = None
            except VirtagentError as failure:
                error = failure
            if not self._feeds.follow or (error is not None and error.kind is FailureKind.FORBIDDEN):
                self._feeds.put(FromVm(self._name, ended=True, error=error))
                return
            if not self._told:  # once, until it is there again
                self._told = True
                _note(f"{self._name}: waiting for va-host: {error or 'it has closed the connection'}")
            closed = self._feeds.closed(RETRY)

    def _read(self) -> None:
        with VmClient.connect(self._feeds.runtime, self._name) as client:
            if self._told:
                self._told = False
                _note(f"{self._name}: va-host is there")
            self._catch_up(client)
            for event in client.events():
                if event["event"] not in (GUEST_EVENT, GUEST_EVENTS_LOST):
                    self._feeds.put(FromVm(self._name, event))
                    continue
                position = event["data"]["position"]
                assert self._position is not None
                if position == self._position + 1:
                    self._position = position
                    self._feeds.put(FromVm(self._name, event, position))
                elif position > self._position:
                    self._catch_up(client)

    def _catch_up(self, client: VmClient) -> None:
        while True:
            since = self._position or 0
            held = client.execute("va_events", {"since": since, "count": _COUNT}, timeout=CONNECT_TIMEOUT)
            if self._position is None:
                self._position = held["last"]
                self._feeds.put(FromVm(self._name, position=self._position))
                return
            if held["last"] < since:
                _note(f"{self._name}: position {since} is not there: its events have begun anew")
                self._position = 0
                continue
            if held["missed"]:
                _note(f"{self._name}: {held['missed']} events are kept no more")
            for entry in held["events"]:
                self._position = entry["position"]
                self._feeds.put(FromVm(self._name, _as_event(self._name, entry), self._position))
            if not held["events"]:
                self._position = max(since, held["next"])
                return


def _as_event(vm: str, entry: dict[str, Any]) -> Event:
    """Return an entry of the journal as the event that it was on the bridge."""
    at = datetime.fromisoformat(entry["received"])
    return {
        "event": GUEST_EVENTS_LOST if "lost" in entry else GUEST_EVENT,
        "data": {"name": vm, **entry},
        "timestamp": {"seconds": int(at.timestamp()), "microseconds": at.microsecond},
    }


def _note(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {visible_line(text)}\n")
    sys.stderr.flush()
