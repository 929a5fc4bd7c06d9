"""The QGA wire on a channel: commands in, answers out, in their order.

The rules:

1. One command at a time, as with qemu-ga. Clients send several at once and rely on it (write, then close),
   and since answers come in order, none would get any sooner. Another wire, or the agent's own link, is not
   held up by a slow one.
2. While a command is executed, one more is read and held; the rest stays with the sender. That bounds what a
   client can make us hold.
3. What was received is executed, also if the client has left meanwhile: `echo … | socat` closes at once.
4. An answer goes to the client that asked. If it has been seen to leave, the answer is dropped, and so is
   what it left unfinished: the next client shall not find it. (A virtio-serial port does not show every
   disconnect; the rest is what guest-sync is for.)
5. A channel that is not there, or not any more, is waited for without limit: other ways to the agent may
   work.
"""

from __future__ import annotations

import logging

import trio

from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.notify import notify
from virtagent_protocol.qga.messages import Command, QgaError, Refusal, parse_command
from virtagent_protocol.qga.stream import JsonProblem, JsonStream
from virtagent_protocol.registry import Gate

from ..transports import Transport
from .dispatch import Dispatcher

log = logging.getLogger("virtagent.qga")

#: Seconds between attempts to open the channel again: the first, and the longest.
RETRY_MIN, RETRY_MAX = 0.1, 5.0
#: Bytes read at a time. Each may be a bracket that takes 2 µs to look at, while nobody else is served.
RECEIVE_SIZE = 16 * 1024

Item = Command | Refusal


async def serve_qga(transport: Transport, gate: Gate) -> None:
    """Serve a channel until cancelled.

    Args:
        transport: the channel; opened again and again.
        gate: what each command has to pass.
    """
    dispatcher = Dispatcher(gate)
    pause, told = RETRY_MIN, ""
    while True:
        wire = Wire(dispatcher)
        try:
            stream = await transport.open(wire.on_peer)
        except VirtagentError as error:
            # Once, not at each attempt.
            if str(error) != told:
                told = str(error)
                log.warning("qga: %s; trying again", told)
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX)
            continue
        pause, told = RETRY_MIN, ""
        async with stream:
            await wire.serve(stream)
        if not transport.patient and not isinstance(stream, trio.SocketStream):
            # A device that fails at once, again and again, shall not keep a CPU busy.
            await trio.sleep(pause)


class Wire:
    """One open channel.

    Args:
        dispatcher: executes the commands.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._input = JsonStream()
        #: Counts the clients that were seen to leave.
        self._departures = 0
        #: Whether nothing can be sent any more.
        self._broken = False

    def on_peer(self, connected: bool, state: str) -> None:
        """The channel's other end has come or gone; see `Report`."""
        log.info("qga: %s", state)
        notify("READY=1")
        if not connected:
            self._departures += 1
            self._input = JsonStream()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve until the channel ends or breaks, and what was received is done."""
        to_executor, items = trio.open_memory_channel[tuple[Item, int]](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._execute, items, stream)
            async with to_executor:
                await self._read(stream, to_executor)

    async def _read(
        self, stream: trio.abc.ReceiveStream, to_executor: trio.MemorySendChannel[tuple[Item, int]]
    ) -> None:
        try:
            while data := await stream.receive_some(RECEIVE_SIZE):
                for event in self._input.feed(bytes(data)):
                    item = (
                        Refusal(QgaError(event.desc), {})
                        if isinstance(event, JsonProblem)
                        else parse_command(event.value)
                    )
                    # There may be a hundred thousand, one for each byte, and nobody hears of them.
                    if isinstance(item, Refusal) and self._broken:
                        continue
                    await to_executor.send((item, self._departures))
                await trio.lowlevel.checkpoint()
        except trio.BrokenResourceError as error:
            log.info("qga: the channel broke: %s", error)

    async def _execute(
        self, items: trio.MemoryReceiveChannel[tuple[Item, int]], stream: trio.abc.SendStream
    ) -> None:
        async for item, departures in items:
            answer = await self._dispatcher.answer(item)
            if answer is None or self._broken or departures != self._departures:
                continue
            try:
                await stream.send_all(answer)
            except trio.BrokenResourceError:
                self._broken = True
