"""The guest's agent, which also calls the host all the time and checks each answer. A program, not a module.

It is va-guest, by its own command line; only the class of its link is one that makes calls. Each call is a
system.multicall of a method that does not exist: its fault repeats the name, which is different each time,
so an answer that is another call's shows. Twice a second, and before it is sure to be asked for, a line

    calls {"run": …, "answered": …, "failed": {reason: times}, "wrong": […], "hung": […]}

goes to stderr: the totals of this run. It imports nothing of the tests, since it runs in a guest, too.

Environment: FAULT_CRC=1 asks for checksums; FAULT_SEED seeds what is random.
"""

from __future__ import annotations

import json
import math
import os
import random
import secrets
import sys
from collections import Counter
from typing import Any

import trio

from virtagent_guest import cli, service
from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.link import Link

CALLERS = 4
#: Seconds between two calls of a caller, between its deadlines, and what a call may take beyond its own.
PAUSE = 0.02
DEADLINES = (0.5, 2.0, 5.0)
GRACE = 10.0
#: Bytes of the longest name: larger than one page of the port.
LONGEST = 6000
REPORT_EVERY = 0.5


class CallingLink(Link):
    """A link that calls its peer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if os.environ.get("FAULT_CRC") == "1":
            kwargs["crc"] = True
        super().__init__(*args, **kwargs)
        self._started = False

    async def run(self, stream: trio.abc.Stream) -> None:
        if not self._started:
            self._started = True
            tally = Tally()
            for number in range(CALLERS):
                trio.lowlevel.spawn_system_task(self._call_on, tally, number)
            trio.lowlevel.spawn_system_task(tally.report)
        await super().run(stream)

    async def _call_on(self, tally: Tally, number: int) -> None:
        chance = random.Random(f"{os.environ.get('FAULT_SEED', '1')} {number}")
        count = 0
        while True:
            await self.wait_for(lambda status: self.session is not None)
            count += 1
            name = f"{tally.run}.{number}.{count}." + "x" * int(LONGEST ** chance.random())
            await self._call(tally, name, chance.choice(DEADLINES))
            await trio.sleep(PAUSE)

    async def _call(self, tally: Tally, name: str, deadline: float) -> None:
        expected = [{"faultCode": -32601, "faultString": f"method '{name}' not found"}]
        tally.under_way[name] = trio.current_time() + deadline + GRACE
        try:
            with call_deadline(deadline, "system.multicall"):
                answer = await self.call("system.multicall", [{"methodName": name, "params": []}])
        except VirtagentError as error:
            tally.failed[f"{error.kind.value}: {error}"] += 1
        else:
            if answer == expected:
                tally.answered += 1
            else:
                tally.wrong.append(f"{name[:60]}: {str(answer)[:200]}")
        finally:
            del tally.under_way[name]


class Tally:
    """The totals of this run."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(4)
        self.answered = 0
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.hung: list[str] = []
        #: Calls that have not ended, and when they must have.
        self.under_way: dict[str, float] = {}

    async def report(self) -> None:
        """Print the totals whenever they have changed."""
        printed = ""
        while True:
            now = trio.current_time()
            for name in [name for name, end in self.under_way.items() if end < now]:
                self.under_way[name] = math.inf
                self.hung.append(name[:60])
            totals = {key: value for key, value in vars(self).items() if key != "under_way"}
            line = f"calls {json.dumps(totals)}"
            if line != printed:
                print(line, file=sys.stderr, flush=True)
                printed = line
            await trio.sleep(REPORT_EVERY)


if __name__ == "__main__":
    vars(service)["Link"] = CallingLink
    raise SystemExit(cli.main(sys.argv[1:]))
