"""A program of the guest that calls a service and tells of events as often as it can, on many connections."""

from __future__ import annotations

import json
from collections import Counter

import trio

from virtagent_guest.calls.client import run_call
from virtagent_guest.local.client import connect
from virtagent_protocol.errors import EXIT_STATUS, VirtagentError

CONNECTIONS = 8


async def flood(path: str, count: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    async def forget(data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def call_again_and_again() -> None:
        async with connect(path) as link:
            for _ in range(count // CONNECTIONS):
                try:
                    ended = await run_call(link, "quick", (), None, forget)
                    outcomes[str(ended.status)] += 1
                except VirtagentError as error:
                    outcomes[str(EXIT_STATUS[error.kind])] += 1

    async def tell_again_and_again() -> None:
        async with connect(path) as link:
            while True:
                await link.call("va.notify", "flood", {"text": "x" * 1000})

    async with trio.open_nursery() as telling:
        telling.start_soon(tell_again_and_again)
        async with trio.open_nursery() as calling:
            for _ in range(CONNECTIONS):
                calling.start_soon(call_again_and_again)
        telling.cancel_scope.cancel()
    return outcomes


def main(path: str, count: str) -> None:
    """Print how often each exit status came out of that many calls."""
    print(json.dumps(trio.run(flood, path, int(count))))
