"""The wire between va-host and agent, in the test's hands: two unix sockets and what happens between them.

The rules:

1. The host connects to `Wire.path`, as to a chardev; the wire connects to the agent's socket. Either may go
   and come back.
2. As on a real port, an end does not see the other come and go: bytes for an end that is absent wait for its
   successor. With `tell` set, the loss of one end is the loss of the other, as unix sockets have it.
3. A `Damage` is done to the bytes of one direction, once, at a given byte from now on; `Noise` is done again
   and again.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import trio

READ_SIZE = 65536
#: Seconds between two attempts to reach the agent.
CONNECT_EVERY = 0.02


class Way(Enum):
    """A direction."""

    TO_GUEST = "host to guest"
    TO_HOST = "guest to host"


class Harm(str, Enum):
    """What can be done to a byte."""

    LOSE = "lost"
    DOUBLE = "doubled"
    FLIP = "flipped"
    INSERT = "inserted"


def harmed(data: bytes, at: int, harm: Harm, chance: random.Random) -> bytes:
    """Return *data* with the byte at an index lost, doubled, with one bit flipped, or after a new one."""
    before, byte, after = data[:at], data[at : at + 1], data[at + 1 :]
    match harm:
        case Harm.LOSE:
            changed = b""
        case Harm.DOUBLE:
            changed = byte * 2
        case Harm.FLIP:
            changed = bytes([byte[0] ^ 1 << chance.randrange(8)])
        case Harm.INSERT:
            # Half of them the byte that begins and ends messages: the worst there is.
            changed = (b"\xff" if chance.random() < 0.5 else chance.randbytes(1)) + byte
    return before + changed + after


class Damage:
    """Does one thing at one byte, counted from now on.

    Args:
        at: how many bytes pass before it.
        act: gets the piece that holds the byte, and its index there; returns what is to be sent instead.

    Attributes:
        done: set when it is done.
    """

    def __init__(self, at: int, act: Callable[[bytes, int], bytes]) -> None:
        self.done = trio.Event()
        self._left = at
        self._act = act

    def __call__(self, data: bytes) -> bytes:
        if self.done.is_set():
            return data
        if len(data) <= self._left:
            self._left -= len(data)
            return data
        self.done.set()
        return self._act(data, self._left)


class Noise:
    """Harms bytes at random, one in *every* on average.

    Attributes:
        count: how many were harmed.
    """

    def __init__(self, every: int, harms: tuple[Harm, ...], chance: random.Random) -> None:
        self.count = 0
        self._every = every
        self._harms = harms
        self._chance = chance
        self._left = self._draw()

    def __call__(self, data: bytes) -> bytes:
        at = self._left
        while at < len(data):
            data = harmed(data, at, self._chance.choice(self._harms), self._chance)
            self.count += 1
            at += self._draw()
        self._left = at - len(data)
        return data

    def _draw(self) -> int:
        return 2 + int(self._chance.expovariate(1 / self._every))


@dataclass
class _End:
    """One end's connection, when there is one."""

    stream: trio.SocketStream | None = None
    changed: trio.Event = field(default_factory=trio.Event)

    async def get(self) -> trio.SocketStream:
        while self.stream is None:
            await self.changed.wait()
        return self.stream

    async def until_lost(self) -> None:
        while self.stream is not None:
            await self.changed.wait()

    def put(self, stream: trio.SocketStream | None) -> None:
        if self.stream is not None:
            self.stream.socket.close()
        self.stream = stream
        self.changed.set()
        self.changed = trio.Event()


class Wire:
    """The wire.

    Args:
        path: where the host is to connect.
        agent: where the agent listens.

    Attributes:
        tell: rule 2.
        harm: what is done to the bytes of each direction.
        passed: how many bytes went each way.
    """

    def __init__(self, path: Path, agent: Path) -> None:
        self.path = path
        self.tell = False
        self.harm: dict[Way, Callable[[bytes], bytes]] = dict.fromkeys(Way, _nothing)
        self.passed = dict.fromkeys(Way, 0)
        self._agent = agent
        self._host_end, self._guest_end = _End(), _End()
        self._flowing = {way: trio.Event() for way in Way}
        for event in self._flowing.values():
            event.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the wire, until cancelled."""
        with trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX)) as listener:
            await listener.bind(os.fspath(self.path))
            listener.listen(5)
            task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._accept, listener)
                    nursery.start_soon(self._connect)
                    nursery.start_soon(self._pump, Way.TO_GUEST, self._host_end, self._guest_end)
                    nursery.start_soon(self._pump, Way.TO_HOST, self._guest_end, self._host_end)
            finally:
                self._host_end.put(None)
                self._guest_end.put(None)

    def cut_host(self) -> None:
        """Close the host's connection."""
        self._lose(self._host_end)

    def cut_guest(self) -> None:
        """Close the agent's connection."""
        self._lose(self._guest_end)

    def stall(self, *ways: Way) -> None:
        """Read nothing of these directions until `flow`."""
        for way in ways:
            self._flowing[way] = trio.Event()

    def flow(self) -> None:
        """Read again."""
        for event in self._flowing.values():
            event.set()

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        while True:
            peer, _ = await listener.accept()
            self._host_end.put(trio.SocketStream(peer))

    async def _connect(self) -> None:
        while True:
            try:
                stream = await trio.open_unix_socket(self._agent)
            except OSError:
                # It is another process, which tells nobody when it listens.
                await trio.sleep(CONNECT_EVERY)
                continue
            self._guest_end.put(stream)
            await self._guest_end.until_lost()

    async def _pump(self, way: Way, source: _End, sink: _End) -> None:
        while True:
            stream = await source.get()
            await self._flowing[way].wait()
            try:
                data = await stream.receive_some(READ_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if data:
                data = self.harm[way](data)
                self.passed[way] += len(data)
                await self._deliver(data, sink)
            elif source.stream is stream:
                self._lose(source)

    async def _deliver(self, data: bytes, sink: _End) -> None:
        stream = await sink.get()
        try:
            await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # What an end had not read when it went is gone.
            if sink.stream is stream:
                self._lose(sink)

    def _lose(self, end: _End) -> None:
        end.put(None)
        if self.tell:
            self._host_end.put(None)
            self._guest_end.put(None)


def _nothing(data: bytes) -> bytes:
    return data
