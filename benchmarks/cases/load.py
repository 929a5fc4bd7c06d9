"""Round trips while the guest is busy: what qemu-ga cannot do at all, as it does one thing at a time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..clients import ClientError
from ..places import NAME, Place
from ..plan import Plan
from ..results import Row
from ..samples import Samples, timed
from .pings import micro, once

#: Commands that run meanwhile, as many as an agent executes at a time.
SLOW_EXECS = 4


def ping(place: Place, plan: Plan) -> Iterator[Row]:
    """Ping while a file is copied, again and again, and slow commands run."""

    def pings() -> Samples:
        return micro(
            Samples([timed(lambda: once(place.bridge, place.bridge.PING)) for _ in range(plan.load_pings)])
        )

    path = place.make_file("load", plan.file_size)
    idle = pings()
    with _load(place, path):
        busy = pings()
    place.shell(f"rm -f {path}")
    yield Row(
        place.name,
        "ping under load, p99 : idle p50",
        "µs",
        busy,
        idle,
        figure=busy.p99 / idle.median,
        note="ours, busy and (under qemu-ga) idle; qemu-ga itself answers when it is done",
    )


@contextmanager
def _load(place: Place, path: str) -> Iterator[None]:
    """Bring the load about, and go on when it is there: five programs that start at once are another one."""
    copy = subprocess.list2cmdline(place.va_host("cp", f"{NAME}:{path}", "-"))
    slow = place.va_host("exec", NAME, "--", "sh", "-c", "echo runs; exec sleep 600")
    with ExitStack() as stack:
        _begin(stack, ["sh", "-c", f"while {copy} >/dev/null; do :; done"])
        for process in [_begin(stack, slow) for _ in range(SLOW_EXECS)]:
            assert process.stdout is not None
            if process.stdout.readline() != b"runs\n":
                raise ClientError("a slow command did not start")
        yield


def _begin(stack: ExitStack, command: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    stack.callback(_end_group, process)
    return process


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours and its children: the shell's `cp` would go on without it."""
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()
