"""A private system bus: a real dbus-daemon, and on it services that say what a test lets them say.

::

    async with private_bus(tmp_path) as bus, bus.service("org.freedesktop.login1") as logind:
        logind.answers["ListSessions"] = ("a(susso)", ([],))
        await logind.emit(path, interface, "SessionNew", "so", ("c1", "/c1"))
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from jeepney.bus_messages import DBus  # type: ignore[import-untyped]
from jeepney.io.trio import DBusConnection, open_dbus_connection  # type: ignore[import-untyped]
from jeepney.low_level import HeaderFields, MessageType  # type: ignore[import-untyped]
from jeepney.wrappers import (  # type: ignore[import-untyped]
    DBusAddress,
    new_error,
    new_method_return,
    new_signal,
)

_CONFIG = """<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
"""

#: Seconds for the daemon to start, and between two looks whether it has.
START_TIMEOUT = 10.0
LOOK_EVERY = 0.01

_PROPERTIES = "org.freedesktop.DBus.Properties"


class Service:
    """A connection that owns a name, and answers calls.

    Attributes:
        answers: member → signature and body of its answer; for a property, ``PATH INTERFACE NAME``, or
            ``PATH INTERFACE`` for all of an interface. What is not here is answered with an error.
        calls: the calls that came, by the same names.
    """

    def __init__(self, connection: DBusConnection) -> None:
        self.answers: dict[str, tuple[str, tuple[Any, ...]]] = {}
        self.calls: list[str] = []
        self._connection = connection
        self._answered = trio.Event()

    async def emit(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: tuple[Any, ...],
        destination: str | None = None,
    ) -> None:
        """Send a signal to all who have asked for it, or to one."""
        message = new_signal(DBusAddress(path, interface=interface), member, signature, body)
        if destination is not None:
            message.header.fields[HeaderFields.destination] = destination
        await self._connection.send(message)

    async def settle(self) -> None:
        """Wait until the bus has passed on all that was sent so far."""
        self._answered = trio.Event()
        await self._connection.send(DBus().GetId())
        await self._answered.wait()

    async def serve(self) -> None:
        """Answer calls until cancelled, or until the bus is gone."""
        try:
            while True:
                message = await self._connection.receive()
                if message.header.message_type is MessageType.method_call:
                    await self._connection.send(self._answer(message))
                elif message.header.message_type is MessageType.method_return:
                    self._answered.set()
        except (trio.EndOfChannel, trio.BrokenResourceError):
            pass

    def _answer(self, message: Any) -> Any:
        fields = message.header.fields
        name = fields[HeaderFields.member]
        if fields[HeaderFields.interface] == _PROPERTIES:
            name = " ".join([fields[HeaderFields.path], *message.body])
        self.calls.append(name)
        if name not in self.answers:
            return new_error(message, "org.example.No")
        return new_method_return(message, *self.answers[name])


class PrivateBus:
    """The daemon.

    Attributes:
        address: for DBUS_SYSTEM_BUS_ADDRESS.
    """

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "bus"
        self._config = directory / "bus.conf"
        self._config.write_text(_CONFIG.format(socket=self._socket))
        self.address = f"unix:path={self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it outlives the task
            ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile"],
            stdin=subprocess.DEVNULL,
        )
        with trio.fail_after(START_TIMEOUT):
            while not await self._listens():
                assert self._process.poll() is None, "dbus-daemon has ended"
                await trio.sleep(LOOK_EVERY)

    async def _listens(self) -> bool:
        try:
            stream = await trio.open_unix_socket(self._socket)
        except OSError:
            return False
        await stream.aclose()
        return True

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)

    @asynccontextmanager
    async def service(self, name: str | None = None) -> AsyncIterator[Service]:
        """Be on the bus, under a name if one is given, until the end of the block."""
        async with await open_dbus_connection(self.address) as connection, trio.open_nursery() as nursery:
            if name is not None:
                async with connection.router() as router:
                    await router.send_and_get_reply(DBus().RequestName(name))
            service = Service(connection)
            nursery.start_soon(service.serve)
            yield service
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def private_bus(directory: Path) -> AsyncIterator[PrivateBus]:
    """Run a bus until the end of the block."""
    bus = PrivateBus(directory)
    try:
        await bus.start()
        yield bus
    finally:
        bus.stop()
