"""Clients of a bridge that call the guest all the time, each with its deadlines, and check each answer."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.faults.ledger import GRACE, SEED, Ledger
from tests.guest.lab import BridgeClient, BridgeError, LabError

CALLERS = 8
#: Seconds between two calls of a caller; after a failure, or nobody would have time to mend anything.
PAUSE = 0.02
PAUSE_FAILED = 0.1
#: Seconds: what a call may take. Some shorter than any recovery, some longer than most.
DEADLINES = (0.3, 1.0, 3.0)
#: Bytes of the largest part of a file that is asked for.
LARGEST = 100_000

_GONE = (LabError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True)
class Known:
    """A file in the guest whose content the test knows, no two parts of it alike."""

    path: str
    content: bytes

    #: Bytes of the whole file, and the seed that it is made of.
    SIZE = 1 << 20

    @classmethod
    def make(cls, path: str) -> Known:
        """Return what random bytes of SEED such a file has."""
        return cls(path, random.Random(SEED).randbytes(cls.SIZE))


class Callers:
    """The clients of one bridge.

    Args:
        bridge: its socket.
        known: what they read.
        ledger: where each call is accounted for.
    """

    def __init__(self, bridge: Path, known: Known, ledger: Ledger, count: int = CALLERS) -> None:
        self._bridge = bridge
        self._known = known
        self._ledger = ledger
        self._count = count
        self._stopping = False

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Call during the block; at its end, every call that was begun is awaited."""
        async with trio.open_nursery() as nursery:
            for number in range(self._count):
                nursery.start_soon(self._work, random.Random(f"{SEED} {number}"))
            try:
                yield
            finally:
                self._stopping = True

    async def _work(self, chance: random.Random) -> None:
        while not self._stopping:
            try:
                async with await trio.open_unix_socket(self._bridge) as stream:
                    client = BridgeClient(stream)
                    await client.execute("qmp_capabilities")
                    while not self._stopping and await self._call(client, chance):
                        client.events.clear()
            except _GONE:
                # No call was made: there is no va-host at the moment.
                await trio.sleep(PAUSE_FAILED)

    async def _call(self, client: BridgeClient, chance: random.Random) -> bool:
        """Make one call and account for it; return whether the connection is of further use."""
        timeout = chance.choice(DEADLINES)
        command, arguments, expected = self._choose(chance)
        with trio.move_on_after(timeout + GRACE):
            try:
                answer = await client.execute(command, **arguments, timeout=timeout)
            except BridgeError as error:
                self._ledger.fail(str(error))
                await trio.sleep(PAUSE_FAILED)
            except AssertionError as error:
                self._ledger.wrong.append(f"{command}: {error}"[:200])
                return False
            except _GONE:
                self._ledger.fail("the bridge closed the connection")
                return False
            else:
                self._judge(command, arguments, answer, expected)
                await trio.sleep(PAUSE * chance.random())
            return True
        self._ledger.hung.append(f"{command} {arguments}: {timeout} s")
        return False

    def _choose(self, chance: random.Random) -> tuple[str, dict[str, Any], bytes | None]:
        if chance.random() < 0.5:
            return "va_ping", {}, None
        count = int(LARGEST ** chance.random())
        offset = chance.randrange(len(self._known.content) - count)
        arguments = {"filepath": self._known.path, "offset": offset, "count": count, "format": "base64"}
        return "va_viewfile", arguments, self._known.content[offset : offset + count]

    def _judge(self, command: str, arguments: object, answer: dict[str, Any], expected: bytes | None) -> None:
        if expected is None:
            right = answer.get("status") == "success"
        else:
            right = base64.b64decode(answer.get("content", "")) == expected
        if right:
            self._ledger.answered += 1
        else:
            self._ledger.wrong.append(f"{command} {arguments}: {str(answer)[:100]}")
