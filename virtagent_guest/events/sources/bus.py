"""The system bus: one connection for all sources that listen to systemd and logind.

The rules:

1. A listener names the services it hears, and match rules, so that the bus sends us nothing else. Without a
   signal, nothing runs.
2. A signal counts if its sender owns the name of a service now: anybody may send us one that looks like
   systemd's, but the bus writes who sent it.
3. Whenever a service is there, or there again, its listeners `begin`: they look at what is, and compare. So
   what happened while the bus or the service was away is not missed.
4. Signals wait in a queue. If it is full, the connection is given up, and rule 3 makes good for it. When the
   connection has ended, those that wait are handled first: at a shutdown, the bus ends before this agent.
5. A bus that is not there, or no longer, is tried again, ever more seldom. That is told once.
6. A listener that fails is told in the log and keeps the others from nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import trio
from jeepney.auth import BEGIN, AuthenticationError, Authenticator  # type: ignore[import-untyped]
from jeepney.bus import find_system_bus  # type: ignore[import-untyped]
from jeepney.low_level import HeaderFields, MessageType  # type: ignore[import-untyped]
from jeepney.wrappers import DBusAddress, new_method_call  # type: ignore[import-untyped]

from virtagent_protocol.errors import NotReady, VirtagentError
from virtagent_protocol.nursery import plain_nursery

from .dbuswire import MessageReader, NotDBus
from .source import log

#: Seconds before the second attempt to connect, and between the last ones.
AGAIN_MIN, AGAIN_MAX = 0.5, 30.0
#: Seconds to connect, and for the answer to a call. systemd is busy for long only while it reloads.
CONNECT_TIMEOUT = 30.0
CALL_TIMEOUT = 30.0
#: Signals that wait.
SIGNALS_MAX = 4096

DBUS = "org.freedesktop.DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"
_BUS_PATH = "/org/freedesktop/DBus"
_READ_SIZE = 1 << 16


class BusLost(NotReady):
    """There is no connection to the bus."""


class BusRefused(VirtagentError):
    """A call was answered with an error, or not at all."""


@dataclass(frozen=True)
class Object:
    """An object of a service, by one of its interfaces."""

    service: str
    path: str
    interface: str


@dataclass(frozen=True)
class Signal:
    """A signal of a service that a listener hears.

    Attributes:
        service: its well-known name.
        path: of the object.
        interface, member: which signal it is.
        body: its arguments, as jeepney gives them: a variant is its signature and its value.
    """

    service: str
    path: str
    interface: str
    member: str
    body: tuple[Any, ...]


class Listener(ABC):
    """Who hears signals.

    Attributes:
        events: what it tells of, for the log.
        services: well-known names of those it hears.
        rules: match rules for the bus (D-Bus specification, "Match Rules").
    """

    events: str
    services: tuple[str, ...]
    rules: tuple[str, ...]

    @abstractmethod
    async def begin(self, bus: Bus, service: str) -> None:
        """Look at what is: the service is there, for the first time or again."""

    @abstractmethod
    async def signal(self, bus: Bus, signal: Signal) -> None:
        """Take note of a signal; it may be none of those that are waited for."""


class Bus:
    """One connection, as long as it lasts. `listen` makes them.

    Attributes:
        nursery: for what a listener has to do beside the signals; it ends with the connection.
    """

    def __init__(
        self, stream: trio.SocketStream, nursery: trio.Nursery, listeners: Sequence[Listener]
    ) -> None:
        self.nursery = nursery
        self._stream = stream
        self._listeners = listeners
        self._serials = count(1)
        self._sending = trio.Lock()
        self._answers: dict[int, _Answer] = {}
        self._lost: BusLost | None = None
        self._to_handle, self._to_be_handled = trio.open_memory_channel[Any](SIGNALS_MAX)
        #: Service → the unique name of who owns it; "" if nobody does.
        self._owners = {service: "" for listener in listeners for service in listener.services}

    async def call(
        self, target: Object, member: str, signature: str | None = None, body: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """Call a method and return what it returns.

        Args:
            target: whose method.
            member: its name.
            signature, body: its arguments.

        Raises:
            BusRefused: the answer is an error, or there is none.
            BusLost: the connection is.
        """
        address = DBusAddress(target.path, target.service, target.interface)
        if self._lost is not None:
            raise self._lost
        serial = next(self._serials)
        answer = self._answers[serial] = _Answer()
        try:
            data = new_method_call(address, member, signature, body).serialise(serial)
            async with self._sending:
                await self._stream.send_all(data)
            with trio.move_on_after(CALL_TIMEOUT):
                await answer.there.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise BusLost(f"the system bus: {error}") from None
        finally:
            del self._answers[serial]
        if answer.message is None:
            if self._lost is not None:
                raise self._lost
            raise BusRefused(f"{target.service} did not answer {member} within {CALL_TIMEOUT:g} s")
        if answer.message.header.message_type is not MessageType.method_return:
            name = answer.message.header.fields.get(HeaderFields.error_name)
            raise BusRefused(f"{target.service} refused {member}: {name}")
        body = answer.message.body
        return tuple(body)

    async def get(self, target: Object, name: str) -> Any:
        """Return the value of a property.

        Raises:
            BusRefused, BusLost: see `call`.
        """
        properties = Object(target.service, target.path, PROPERTIES)
        ((_, value),) = await self.call(properties, "Get", "ss", (target.interface, name))
        return value

    async def get_all(self, target: Object) -> dict[str, Any]:
        """Return all properties of an object's interface.

        Raises:
            BusRefused, BusLost: see `call`.
        """
        properties = Object(target.service, target.path, PROPERTIES)
        (found,) = await self.call(properties, "GetAll", "s", (target.interface,))
        return {name: value for name, (_, value) in found.items()}

    async def read(self) -> None:
        """Hand on what comes, until the connection is lost."""
        try:
            await self._read()
        except (trio.BrokenResourceError, trio.ClosedResourceError, NotDBus) as error:
            self._lost = BusLost(f"the system bus: {error}")
        except BusLost as error:
            self._lost = error
        self._to_handle.close()
        for answer in self._answers.values():
            answer.there.set()

    async def _read(self) -> None:
        reader = MessageReader()
        while data := await self._stream.receive_some(_READ_SIZE):
            for message in reader.feed(data):
                self._take(message)
        raise BusLost("the system bus closed the connection")

    def _take(self, message: Any) -> None:
        if message.header.message_type is MessageType.signal:
            try:
                self._to_handle.send_nowait(message)
            except trio.WouldBlock:
                raise BusLost(f"the system bus: more than {SIGNALS_MAX} signals wait") from None
            return
        answer = self._answers.get(message.header.fields.get(HeaderFields.reply_serial))
        if answer is not None:
            answer.message = message
            answer.there.set()

    async def handle(self) -> None:
        """Say hello, let the listeners begin, and give them their signals.

        Raises:
            BusLost: when the connection is.
        """
        bus = Object(DBUS, _BUS_PATH, DBUS)
        await self.call(bus, "Hello")
        rules = [f"sender='{DBUS}',member='NameOwnerChanged',arg0='{service}'" for service in self._owners]
        # Whoever asks first and subscribes then has a gap in between.
        for rule in dict.fromkeys(rules + [rule for each in self._listeners for rule in each.rules]):
            await self.call(bus, "AddMatch", "s", (f"type='signal',{rule}",))
        found = {}
        for service in self._owners:
            try:
                (found[service],) = await self.call(bus, "GetNameOwner", "s", (service,))
            except BusRefused:
                log.info("there is no %s on the system bus yet: its events are told when there is", service)
        for service, owner in found.items():
            await self._owned(service, owner)
        async for message in self._to_be_handled:
            await self._handle(message)
        assert self._lost is not None
        raise self._lost

    async def _handle(self, message: Any) -> None:
        fields = message.header.fields
        sender, member = fields.get(HeaderFields.sender), fields.get(HeaderFields.member)
        if sender == DBUS:
            if member == "NameOwnerChanged" and message.body[0] in self._owners:
                await self._owned(message.body[0], message.body[2])
            return
        for service, owner in self._owners.items():
            if owner and owner == sender:
                path, interface = fields.get(HeaderFields.path), fields.get(HeaderFields.interface)
                await self._tell(Signal(service, path, interface, member, tuple(message.body)))

    async def _owned(self, service: str, owner: str) -> None:
        if self._owners[service] == owner:
            return
        self._owners[service] = owner
        if not owner:
            return
        for listener in self._listeners:
            if service in listener.services:
                try:
                    await listener.begin(self, service)
                except BusLost:
                    pass  # rule 4
                except Exception as error:  # noqa: BLE001 - rule 6
                    _complain(listener, error)

    async def _tell(self, signal: Signal) -> None:
        for listener in self._listeners:
            if signal.service in listener.services:
                try:
                    await listener.signal(self, signal)
                except BusLost:
                    pass  # rule 4
                except Exception as error:  # noqa: BLE001 - rule 6
                    _complain(listener, error)


class _Answer:
    def __init__(self) -> None:
        self.there = trio.Event()
        self.message: Any = None


def _complain(listener: Listener, error: Exception) -> None:
    if isinstance(error, BusRefused):
        log.warning("%s: %s", listener.events, error)
    else:
        log.exception("%s: a signal, or the state of its service, was not understood", listener.events)


async def listen(listeners: Sequence[Listener]) -> None:
    """Serve the listeners until cancelled, on one connection after the other."""
    pause = AGAIN_MIN
    told = False
    while True:
        began = trio.current_time()
        try:
            await _connected(listeners)
        except BusLost as error:
            if trio.current_time() - began > AGAIN_MAX:
                # It worked, so its loss is a new incident.
                pause, told = AGAIN_MIN, False
            if not told:
                log.info("%s: trying again; until then, there are no events of systemd and logind", error)
                told = True
        await trio.sleep(pause)
        pause = min(2 * pause, AGAIN_MAX)


async def _connected(listeners: Sequence[Listener]) -> None:
    stream = await _connect()
    try:
        async with stream, plain_nursery() as nursery:
            bus = Bus(stream, nursery, listeners)
            nursery.start_soon(bus.read)
            await bus.handle()
    except BusRefused as error:
        raise BusLost(f"the system bus does not serve us: {error}") from None


async def _connect() -> trio.SocketStream:
    """Connect to the system bus, and say who we are.

    Raises:
        BusLost: that does not work.
    """
    try:
        address = find_system_bus()
    except (RuntimeError, ValueError, KeyError) as error:
        raise BusLost(f"DBUS_SYSTEM_BUS_ADDRESS is of no use: {error}") from None
    scope = trio.move_on_after(CONNECT_TIMEOUT)
    try:
        with scope:
            stream = await trio.open_unix_socket(address)
            try:
                await _authenticate(stream)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            return stream
    except OSError as error:
        raise BusLost(f"there is no system bus at {address}: {error.strerror or error}") from None
    except (trio.BrokenResourceError, AuthenticationError) as error:
        raise BusLost(f"the system bus at {address} does not let us in: {error}") from None
    raise BusLost(f"the system bus at {address} did not answer within {CONNECT_TIMEOUT:g} s")


async def _authenticate(stream: trio.SocketStream) -> None:
    # The bus asks the kernel who we are; the byte is what the kernel's answer is attached to.
    await stream.send_all(b"\0")
    dialogue = Authenticator(inc_null_byte=False)
    for said in dialogue:
        await stream.send_all(said)
        answer = await stream.receive_some(_READ_SIZE)
        if not answer:
            raise trio.BrokenResourceError("it closed the connection")
        dialogue.feed(answer)
    await stream.send_all(BEGIN)
