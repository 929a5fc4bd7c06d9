"""A hostile program of some user in the guest: run as a script, and as that user.

python sessionplayer.py SOCKET flood    a session agent that sends all it can
python sessionplayer.py SOCKET steal    tries to open sessions of others, and prints what comes of it
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from virtagent_guest.local.client import connect
from virtagent_protocol.errors import RemoteFault, VirtagentError
from virtagent_protocol.limits import KIB, MIB
from virtagent_protocol.link import Link
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Struct, Value

#: Seconds until the next attempt of one that was not let in.
AGAIN = 0.1


def hostile_methods() -> Registry:
    """Return what floods: answers that are as large as they can be, streams without end, no answer at all."""
    registry = Registry()

    @registry.method("va.getfile")
    async def getfile(call: Call, path: str, offset: int = 0, count: int = -1) -> bytes:
        """Answer with more than was asked for."""
        return bytes(64 * KIB)

    @registry.method("va.stat")
    async def stat(call: Call, path: Value, follow: bool = False) -> None:
        """Never answer."""
        await trio.sleep_forever()

    @registry.method("va.exec")
    async def exec_(call: Call, job: Struct) -> Struct:
        """Write without end, and never tell one."""
        for name in ("io", "stderr", "status"):
            number = job.get(name)
            if isinstance(number, int):
                stream = call.accept(number)
                if name != "status":
                    call.spawn(pour, stream)
        return {"id": 1, "pid": 1}

    return registry


async def pour(stream: trio.abc.SendStream) -> None:
    """Send until nobody takes it."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            await stream.send_all(bytes(64 * KIB))


async def flood(path: str, *, size: int = 2 * KIB, elements: int = 200) -> None:
    """Send calls of several kinds, without a pause."""
    async with connect(path, hostile_methods(), name="flood") as link, trio.open_nursery() as nursery:
        await link.call("va.open_session", {})
        # Not before all are there.
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        calls: list[tuple[str, list[Value]]] = [
            ("va.ping", []),
            ("va.notify", ["flood.flood", {"text": "x" * 2000}]),
            ("va.open_session", [{"type": "y" * size}]),
            ("va.none", [[None] * elements]),
        ]
        for method, params in 2 * calls:
            nursery.start_soon(_call_forever, link, method, params)


crush = partial(flood, size=MIB, elements=60_000)


async def _call_forever(link: Link, method: str, params: list[Value]) -> None:
    while True:
        with contextlib.suppress(RemoteFault):
            await link.call(method, *params)


async def steal(path: str) -> None:
    """Claim to be others, each time on a new connection; then two sessions on one."""
    claims: list[Struct] = [
        {"uid": 0},
        {"user": "root"},
        {"uid": os.getuid(), "user": "root"},
        {"type": "x11"},
    ]
    said = []
    for claim in claims:
        async with connect(path) as link:
            said.append(await _open(link, claim))
    async with connect(path) as link:
        said += [await _open(link, {}), await _open(link, {})]
    print(json.dumps(said), flush=True)


async def _open(link: Link, claim: Struct) -> Value:
    try:
        return await link.call("va.open_session", claim)
    except RemoteFault as fault:
        return f"{fault.kind.value}: {fault.message}"


#: Word of the command line → what it means.
WORDS: dict[str, Callable[[str], Awaitable[None]]] = {"flood": flood, "crush": crush, "steal": steal}


def main() -> None:
    """Do what the command line says."""
    path, word = sys.argv[1:]
    while True:
        try:
            trio.run(WORDS[word], path)
            return
        except VirtagentError as error:
            print(error, file=sys.stderr, flush=True)
            time.sleep(AGAIN)


if __name__ == "__main__":
    main()
