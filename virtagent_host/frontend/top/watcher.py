"""The rows of `va-host top`, kept up to date by a thread for each VM.

The rules:

1. A thread has one connection to one bridge, and waits for what comes by it: a va-host that hangs delays no
   other row, nor the keys.
2. A VM that comes gets a row, one that goes loses it; a VM that was asked for by name keeps its row, which
   then says that it is not there.
3. Statistics are subscribed to when the link is ready, and again when it is so again. Where that is refused
   (another agent, a policy), the row says so, and it is tried again now and then.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

from virtagent_protocol.errors import CallTimeout, LinkBroken, NotThere, VirtagentError

from ...runtime import RuntimeDir
from ..client import VmClient
from ..statistics import ENDED_EVENT, EVENT, once
from .figures import SECTIONS, Row

#: Seconds for the bridge, or the guest, to answer.
_TIMEOUT = 5.0
#: Seconds between two attempts at what has failed.
_AGAIN = 2.0
#: Seconds between two looks at which VMs there are.
_LOOK_AGAIN = 1.0
#: VMs that are shown: each costs a thread and a connection.
VMS_MAX = 256

_TALKING = ("ready", "frozen")


class Watch:
    """All rows.

    Args:
        runtime: where VMs are attached.
        names: which are shown; none: all.
        interval: seconds between two samples of each.

    Attributes:
        runtime: as given.
    """

    def __init__(self, runtime: RuntimeDir, names: tuple[str, ...], interval: float) -> None:
        self.runtime = runtime
        self._names = names
        self._interval = interval
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._watched: set[str] = set()
        self._looked = 0.0

    def rows(self) -> list[Row]:
        """Return all rows as they are now, after a look for VMs that have come.

        Raises:
            Forbidden: the runtime directory cannot be read.
        """
        self._look()
        with self._lock:
            return [copy.deepcopy(row) for row in self._rows.values()]

    def _look(self) -> None:
        now = time.monotonic()
        if self._looked and now < self._looked + _LOOK_AGAIN:
            return
        self._looked = now
        names = list(dict.fromkeys(self._names)) or self.runtime.attached()
        with self._lock:
            new = [name for name in names if name not in self._watched][: VMS_MAX - len(self._watched)]
            for name in new:
                self._watched.add(name)
                self._rows.setdefault(name, Row(name, self._interval))
        for name in new:
            threading.Thread(target=self._watch, args=(name,), name=f"watch {name}", daemon=True).start()

    def _watch(self, name: str) -> None:
        """Keep one row, until its VM goes."""
        while True:
            try:
                with VmClient.connect(self.runtime, name, timeout=_TIMEOUT) as client:
                    _Conversation(self, name, client, self._interval).run()
            except NotThere as error:
                if name not in self._names:
                    with self._lock:
                        self._rows.pop(name, None)
                        self._watched.discard(name)
                    return
                self.update(name, state="not there", reason=str(error), now={})
            except VirtagentError as error:
                self.update(name, state=error.kind.value, reason=str(error), now={})
            time.sleep(_AGAIN if name in self._names else _LOOK_AGAIN)

    def update(self, name: str, **members: Any) -> None:
        """Set members of a row."""
        with self._lock:
            row = self._rows[name]
            for member, value in members.items():
                setattr(row, member, value)

    def take(self, name: str, record: dict[str, Any]) -> None:
        """A record has come for a row."""
        with self._lock:
            self._rows[name].take(record, time.monotonic())


class _Conversation:
    """What one connection says of one VM."""

    def __init__(self, watch: Watch, name: str, client: VmClient, interval: float) -> None:
        self._watch = watch
        self._name = name
        self._client = client
        self._interval = interval
        self._subscription: int | None = None
        self._state = ""

    def run(self) -> None:
        """Return when va-host closes the connection. Raises VirtagentError."""
        self._on_state(self._client.execute("va_status", timeout=_TIMEOUT))
        while True:
            # Only one who has no subscription has anything to try again.
            timeout = None if self._subscription is not None or self._state not in _TALKING else _AGAIN
            try:
                for event in self._client.events(timeout=timeout):
                    self._on_event(event)
                    if (self._subscription is None) != (timeout is not None):
                        break
                else:
                    return
            except CallTimeout:
                self._subscribe()

    def _on_event(self, event: dict[str, Any]) -> None:
        data = event.get("data", {})
        if event["event"] == "VA_STATE_CHANGE":
            self._on_state(data)
        elif data.get("id") == self._subscription and self._subscription is not None:
            if event["event"] == EVENT:
                self._watch.take(self._name, data)
            elif event["event"] == ENDED_EVENT:
                # If the link is ready again already, it is tried again in a moment.
                self._subscription = None

    def _on_state(self, status: dict[str, Any]) -> None:
        self._state = str(status.get("state", ""))
        talking = self._state in _TALKING
        self._watch.update(
            self._name,
            state=self._state,
            reason=str(status.get("reason", "")),
            **({} if talking or self._state == "paused" else {"now": {}, "note": ""}),
        )
        if talking and self._subscription is None:
            self._subscribe()

    def _subscribe(self) -> None:
        if self._state not in _TALKING:
            return
        try:
            arguments = {"sections": [*SECTIONS], "interval": self._interval}
            self._subscription = int(once(self._client, arguments, _TIMEOUT)["id"])
        except CallTimeout as error:
            # Ours, not the service's: va-host itself hangs.
            raise LinkBroken(str(error)) from None
        except VirtagentError as error:
            self._watch.update(self._name, note=f"{error.kind.value}: {error}", now={})
