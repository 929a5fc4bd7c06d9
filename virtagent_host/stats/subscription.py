"""A client's subscription to a guest's statistics.

The rules:

1. Records go as events to the one client that asked. The next is taken from the guest when the last has gone
   out to the client, so one that does not read costs one record, and the guest skips samples meanwhile.
2. A guest that sends sooner than it was asked to is not listened to until it is time.
3. A subscription ends with its client, by `Subscription.stop`, or because the guest sends no more: then the
   client is told. It does not begin again by itself: the client knows when the link is ready.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary

import trio

from virtagent_protocol.errors import RemoteProtocolError, VirtagentError
from virtagent_protocol.paced import PacedReader
from virtagent_protocol.stream import CANCELLED, REFUSED, LinkStream
from virtagent_protocol.values import Struct, Value

from ..command import Client, InvalidArguments, VirtualMachine
from .record import checked

#: A record: {id, skipped, …}.
EVENT = "VA_GUEST_STATS"
#: The guest sends no more: {id, kind, error}.
ENDED_EVENT = "VA_GUEST_STATS_ENDED"
#: Subscriptions of one client.
PER_CLIENT_MAX = 8

_numbers = itertools.count(1)


class Subscription:
    """One subscription.

    Attributes:
        number: its id.
        interval: seconds.
        answer: what the guest answered, unchecked.
    """

    def __init__(self, client: Client, stream: LinkStream, interval: float, answer: Value) -> None:
        self.number = next(_numbers)
        self.interval = interval
        self.answer = answer
        self._client = client
        self._stream = stream
        self._scope = trio.CancelScope()

    def stop(self) -> None:
        """End it; the client gets no more events of it."""
        self._scope.cancel()
        _of(self._client).pop(self.number, None)

    async def run(self) -> None:
        """Pass records on until it ends."""
        told: dict[str, object] = {}
        try:
            with self._scope:
                await self._pass_on(PacedReader(self._stream))
        except VirtagentError as error:
            told = {"kind": error.kind.value, "error": str(error)}
        finally:
            self._stream.reset(CANCELLED)
            _of(self._client).pop(self.number, None)
        if told:
            self._client.emit(ENDED_EVENT, {"id": self.number, **told})

    async def _pass_on(self, reader: PacedReader) -> None:
        earliest = trio.current_time()
        while True:
            value = await reader.get()
            await trio.sleep_until(earliest)
            earliest = trio.current_time() + self.interval / 2
            self._client.emit(EVENT, {"id": self.number, **_complete(checked(value))})
            await self._client.events_sent()
            await reader.taken()


_subscriptions: WeakKeyDictionary[Client, dict[int, Subscription]] = WeakKeyDictionary()


async def subscribe(vm: VirtualMachine, client: Client, options: Struct, interval: float) -> Subscription:
    """Begin a subscription; its events follow.

    Args:
        vm: whose guest.
        client: who gets the events.
        options: of va.stats, less the stream and the interval.
        interval: seconds between two records.

    Raises:
        VirtagentError: the guest refuses, or this client has too many.
    """
    if len(_of(client)) >= PER_CLIENT_MAX:
        raise InvalidArguments(
            f"this client has {PER_CLIENT_MAX} subscriptions: end one with va_stats_stop, then try again"
        )
    stream = vm.open_stream()
    try:
        answer = await vm.call("va.stats", {**options, "stream": stream.id, "interval": interval})
    except BaseException:
        stream.reset(REFUSED)
        raise
    subscription = Subscription(client, stream, interval, answer)
    _of(client)[subscription.number] = subscription
    client.spawn(subscription.run)
    return subscription


def find(client: Client, number: int) -> Subscription:
    """Return a subscription of this client.

    Raises:
        InvalidArguments: there is none of that id.
    """
    try:
        return _of(client)[number]
    except KeyError:
        raise InvalidArguments(f"this client has no subscription {number} to statistics") from None


def _of(client: Client) -> dict[int, Subscription]:
    return _subscriptions.setdefault(client, {})


def _complete(record: dict[str, Any]) -> dict[str, Any]:
    if "skipped" not in record:
        raise RemoteProtocolError("member 'skipped' of the guest's statistics is missing")
    return record
