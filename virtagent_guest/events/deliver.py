"""Events go to the host: one batch at a time, in order, each until it is confirmed.

The rules:

1. One batch is under way; the next one goes when the host has answered. So nothing overtakes.
2. A batch whose answer did not come, for whatever reason, is sent again. Whether the host has it is not
   known, and need not be: it drops what it has.
3. While there is no session nothing is tried; a new one is a reason to try at once.
4. A host without `va.events` is an older one. Events wait for the next host.
"""

from __future__ import annotations

import logging
import math
from typing import cast

import trio

from virtagent_protocol.errors import FailureKind, FaultCode, NotReady, RemoteFault, VirtagentError
from virtagent_protocol.events import METHOD
from virtagent_protocol.values import Value, as_struct, member

from ..forward.host import Host
from .log import EventLog

log = logging.getLogger("virtagent.events")

#: Seconds before the next attempt after one that failed, if no new session comes first.
RETRY = 2.0
#: The same where there is no session, or one whose host is silent: its end may be noticed by nobody.
SILENT_RETRY = 10.0


class Delivery:
    """Takes events from a log to the host.

    Args:
        events: where from.
        host: where to.
    """

    def __init__(self, events: EventLog, host: Host) -> None:
        self._events = events
        self._host = host
        self._news = trio.Event()
        self._session = trio.Event()
        events.on_event = self._on_event

    def session_began(self, session: object = None, previous: object = None) -> None:
        """There is a new session with the host (`Link`'s on_session)."""
        self._session.set()
        self._news.set()

    async def run(self) -> None:
        """Deliver events until cancelled."""
        while True:
            while not len(self._events):
                self._news = trio.Event()
                await self._news.wait()
            self._session = trio.Event()
            pause = await self._send()
            if pause:
                with trio.move_on_after(pause):
                    await self._session.wait()

    async def _send(self) -> float:
        """Send the next batch; return the seconds to wait if no new session begins."""
        batch = self._events.batch()
        last = batch.events[-1].sequence
        try:
            answer = cast(Value, await self._host.call(METHOD, batch.to_value()))
            confirmed = member(as_struct(answer, f"the answer to {METHOD}"), "confirmed", int)
        except RemoteFault as fault:
            if fault.code == FaultCode.METHOD_NOT_FOUND:
                log.info("the host takes no events: %s", fault)
                return math.inf
            if fault.kind is FailureKind.REFUSED:
                # It would refuse them again, and all that come after would wait behind them.
                log.error("events %d to %d are lost: %s", batch.events[0].sequence, last, fault)
                self._events.confirm(last)
                return 0
            return RETRY
        except NotReady:
            return SILENT_RETRY
        except VirtagentError as error:
            log.info("events %d to %d are sent again: %s", batch.events[0].sequence, last, error)
            return RETRY
        if confirmed < batch.events[0].sequence:
            return RETRY
        self._events.confirm(min(confirmed, last))
        return 0

    def _on_event(self) -> None:
        self._news.set()
