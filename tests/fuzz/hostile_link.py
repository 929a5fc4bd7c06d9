"""A host's VM with a guest that says what it is told to say: in memory, on a clock that jumps."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets

import trio
import trio.testing

from tests.unit.nobody import NobodysClient
from virtagent_host.commands import bind
from virtagent_host.service.vm import Vm
from virtagent_protocol.counters import Counters
from virtagent_protocol.errors import LinkBroken, VirtagentError
from virtagent_protocol.limits import INLINE_MAX, Settings
from virtagent_protocol.linkstate import LinkEvent

#: The host's epoch: the same in each run and in the vectors, so that seeds and mutants fit the session.
HOST_EPOCH = "00000000000000a1"
#: With the guest whose epoch is 00000000000000b2.
SESSION = f"{HOST_EPOCH}-00000000000000b2"
#: Seconds of the test's clock between two things that the guest says, and after the last of them: time for
#: stalls, heartbeats and repeated hellos.
GAP, END = 0.01, 60.0
#: Seconds between a user's commands.
PAUSE = 3.0
#: What a user asks meanwhile, again and again.
COMMANDS: tuple[tuple[str, dict[str, object]], ...] = (
    ("va_ping", {}),
    ("va_capabilities", {}),
    ("va_viewfile", {"filepath": "/etc/motd", "count": 10}),
    ("va_viewdmesg", {"format": "base64"}),
    ("va_shutdown", {"shutdown_mode": "halt"}),
)
#: Messages that wait for a guest that does not read: small replies, what holds slots, hello and its answer.
QUEUE_MAX = INLINE_MAX + Settings().execute_max + Settings().send_max + 2


def host_tag(number: int) -> str:
    """Return the tag of the host's message of that number: 1 is its first hello."""
    return f"{HOST_EPOCH}-{number:08x}"


class _Script(trio.abc.Stream):
    """Says its pieces, waits, and ends."""

    def __init__(self, pieces: list[bytes], reads: bool) -> None:
        self._pieces = list(pieces)
        self._reads = reads

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._pieces:
            await trio.sleep(END)
            return b""
        await trio.sleep(GAP)
        piece = self._pieces.pop(0)
        if max_bytes is not None and len(piece) > max_bytes:
            self._pieces.insert(0, piece[max_bytes:])
        return piece[:max_bytes]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self._reads:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def run_hostile_guest(pieces: list[bytes], *, reads: bool) -> Counters:
    """Let a guest say these pieces, and hold the host to its promises.

    Args:
        pieces: what is received at a time.
        reads: whether the guest takes what the host sends.

    Returns:
        what the host counted.
    """
    logging.disable()
    random_hex, secrets.token_hex = secrets.token_hex, lambda nbytes=None: HOST_EPOCH
    try:
        return trio.run(_run, pieces, reads, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        secrets.token_hex = random_hex
        logging.disable(logging.NOTSET)


async def _run(pieces: list[bytes], reads: bool) -> Counters:
    vm = Vm("fuzz", Settings())
    vm.emit = lambda name, data: _check_event(data)
    vm.link.hint(LinkEvent.PORT_OPENED, "fuzz")
    async with trio.open_nursery() as users:
        for name, arguments in COMMANDS:
            users.start_soon(_ask_again_and_again, vm, name, arguments)
        with contextlib.suppress(LinkBroken):
            await vm.link.run(_Script([piece for piece in pieces if piece], reads))
        users.cancel_scope.cancel()
    figures = vm.link.figures()
    for jobs in (figures["client-jobs"], figures["server-jobs"]):
        assert isinstance(jobs, dict)
        assert jobs.get("in-flight", 0) == jobs.get("executing", 0) == jobs["waiting"] == 0, figures
    assert figures["send-queue"] == 0
    return vm.link.counters


async def _ask_again_and_again(vm: Vm, name: str, arguments: dict[str, object]) -> None:
    command = bind(vm)[name]
    while True:
        await vm.wait_for("ready")
        try:
            json.dumps(await command(arguments, NobodysClient()), allow_nan=False)
        except VirtagentError as error:
            _check_message(error)
        json.dumps(vm.status(), allow_nan=False)
        figures = vm.link.figures()
        assert isinstance(figures["send-queue"], int)
        assert figures["send-queue"] <= QUEUE_MAX
        await trio.sleep(PAUSE)


def _check_message(error: VirtagentError) -> None:
    assert 0 < len(str(error)) < 32 * 1024


def _check_event(data: dict[str, object]) -> None:
    assert len(json.dumps(data)) < 32 * 1024
