"""The guest's clipboard as the host sees it, with a guest that is played, and hostile."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import trio

from virtagent_host.clipboard import BROKEN_EVENT
from virtagent_host.frontend import guestclipboard
from virtagent_host.frontend.client import VmClient
from virtagent_host.frontend.guestclipboard import GuestClipboard
from virtagent_protocol.clipboard.bundle import LINE_MAX, header, line, pieces
from virtagent_protocol.clipboard.contents import Blob, Contents, TooLarge
from virtagent_protocol.clipboard.mime import PATTERNS
from virtagent_protocol.errors import CallTimeout, NotReady, NotThere, RemoteProtocolError, VirtagentError

DEADLINE = 20.0
Behaviour = Callable[[socket.socket], None]


class PlayedClient(VmClient):
    """A connection to a bridge, on which a guest does with the socket what it likes."""

    def __init__(self, behave: Behaviour, reason: str) -> None:
        self._behave, self._reason = behave, reason
        self._theirs = socket.socket()

    def send_fd(self, name: str, fd: int, *, timeout: float = 0.0) -> None:
        self._theirs.close()
        self._theirs = socket.socket(fileno=os.dup(fd))

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float | None
    ) -> Any:
        threading.Thread(target=self._serve, args=[self._theirs]).start()
        return {}

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                self._behave(sock)
            except OSError:
                return  # the host reads no more

    def events(self, *, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        if self._reason:
            yield {"event": BROKEN_EVENT, "data": {"kind": "broken", "reason": self._reason}}

    def close(self) -> None:
        pass


def guest(behave: Behaviour, reason: str = "", timeout: float = 5.0) -> GuestClipboard:
    return GuestClipboard(lambda: PlayedClient(behave, reason), timeout, lambda error: None)


def made(**types: bytes) -> Contents:
    return Contents({name.replace("_", "/"): Blob.of(data) for name, data in types.items()})


async def fetch(behave: Behaviour, known: Contents | None = None, limit: int = 1000) -> Contents:
    with trio.fail_after(DEADLINE):
        return await guest(behave).fetch(PATTERNS, limit, known or Contents())


async def test_types_that_nobody_asked_for_are_dropped() -> None:
    sent = made(text_plain=b"x", application_zip=b"y", image_png=b"z", image_gif=b"w")

    def behave(sock: socket.socket) -> None:
        sock.sendall(b"".join(pieces(sent)))

    contents = await fetch(behave)
    assert {name: blob.bytes() for name, blob in contents.items()} == {"text/plain": b"x", "image/png": b"z"}


async def test_contents_that_are_known_are_not_waited_for() -> None:
    known = made(text_plain=b"x" * 900)
    asked_to_stop = threading.Event()

    def behave(sock: socket.socket) -> None:
        sock.sendall(header(known))
        assert sock.recv(1) == b""  # and never a byte of them
        asked_to_stop.set()

    assert (await fetch(behave, known)).alike(known)
    assert await trio.to_thread.run_sync(asked_to_stop.wait, DEADLINE)


async def test_a_guest_that_says_it_has_too_much_is_not_read_any_further() -> None:
    def behave(sock: socket.socket) -> None:
        sock.sendall(line({"types": [{"type": "text/plain", "size": 10**30, "sha256": "0" * 64}]}))
        while True:
            sock.sendall(b"x" * 65536)

    with pytest.raises(TooLarge):
        await fetch(behave)


async def test_a_line_without_an_end_is_not_kept() -> None:
    def behave(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"x" * LINE_MAX)

    with pytest.raises(RemoteProtocolError, match="too long"):
        await fetch(behave)


async def test_a_stream_that_was_cut_is_explained_and_is_no_reason_to_end_a_sync() -> None:
    def behave(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.recv(1)

    contents = made(text_plain=b"x" * 1_000_000)
    with trio.fail_after(DEADLINE), pytest.raises(NotReady, match="the guest was rebooted"):
        await guest(behave, "the guest was rebooted").write(contents)


async def test_a_guest_that_floods_with_notices_is_heard_no_more_often_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guestclipboard, "NOTICE_INTERVAL", 0.2)
    sent = 0

    def behave(sock: socket.socket) -> None:
        nonlocal sent
        while True:
            sock.sendall(line({"changes": sent}))
            sent += 1

    side = guest(behave)
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            await nursery.start(side.watch)
            began = trio.current_time()
            while side.changes < 4:
                await side.wait_change(side.changes)
            assert trio.current_time() - began >= 2 * 0.2
            nursery.cancel_scope.cancel()
    # It was not read ahead of that, either: what is under way fills the socket, and no more.
    assert sent < 100_000


async def test_a_guest_that_says_nothing_is_given_up_at_the_start() -> None:
    def behave(sock: socket.socket) -> None:
        sock.recv(1)

    with (
        trio.fail_after(DEADLINE),
        pytest.raises(CallTimeout, match=r"not told of its clipboard within 0\.3 s"),
    ):
        await guest(behave, timeout=0.3).watch()


async def test_a_watch_that_ends_is_taken_up_again_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestclipboard, "BACKOFF_MIN", 0.01)
    lost: list[VirtagentError] = []

    def behave(sock: socket.socket) -> None:
        sock.sendall(line({"changes": 7}))

    side = GuestClipboard(lambda: PlayedClient(behave, ""), 5.0, lost.append)
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            await nursery.start(side.watch)
            while side.changes < 3:
                await side.wait_change(side.changes)
            nursery.cancel_scope.cancel()
    assert len(lost) >= 2
    assert "has ended its watch" in str(lost[0])


async def test_a_va_host_that_is_gone_ends_the_watch() -> None:
    def connect() -> VmClient:
        raise NotThere("no VM named 'demo' is attached")

    with trio.fail_after(DEADLINE), pytest.raises(NotThere, match="no VM named 'demo'"):
        await GuestClipboard(connect, 5.0, lambda error: None).watch()
