"""The stream of events that `va-host events` and `va-host on` read, against a bridge that plays tricks."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from virtagent_host.events.intake import GuestEvents
from virtagent_host.frontend.feed import Feeds
from virtagent_host.frontend.reaction import environment, matches, name_of
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol.errors import CallTimeout, NotThere

#: Seconds for anything here.
DEADLINE = 20.0


class PlayedBridge:
    """A bridge for one client after another. Its journal is real; its events come when the test says."""

    def __init__(self, path: Path) -> None:
        self.events = GuestEvents("demo", None, lambda name, data: None)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._client: socket.socket | None = None
        self.connected = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def happen(self, *names: str) -> list[dict[str, Any]]:
        """Write events to the journal, and return them as they would be told."""
        common = {"log": "0" * 16, "data": {}, "received": "2026-01-01T00:00:00+00:00"}
        return self.events.journal.append([{**common, "event": name} for name in names])

    def tell(self, entry: dict[str, Any], name: str = "VA_GUEST_EVENT") -> None:
        event = {
            "event": name,
            "data": {"name": "demo", **entry},
            "timestamp": {"seconds": 1, "microseconds": 2},
        }
        self._send(event)

    def hang_up(self) -> None:
        assert self._client is not None
        self._client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self.hang_up()
        self._thread.join(DEADLINE)
        self._listener.close()

    def _send(self, message: object) -> None:
        assert self._client is not None
        self._client.sendall(json.dumps(message).encode() + b"\r\n")

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._listener.accept()
            except OSError:
                return
            # Some only look whether anybody is there.
            with suppress(OSError), self._client, self._client.makefile("rb") as lines:
                self._send({"QMP": {}})
                for line in lines:
                    self._answer(json.loads(line))

    def _answer(self, request: dict[str, Any]) -> None:
        result: dict[str, Any] = {}
        if request["execute"] == "va_events":
            result = self.events.read(**request["arguments"])
        self._send({"return": result, "id": request["id"]})
        if result and not result["events"]:
            self.connected.release()


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeDir:
    return RuntimeDir(tmp_path)


@pytest.fixture
def bridge(runtime: RuntimeDir) -> Iterator[PlayedBridge]:
    played = PlayedBridge(runtime.vm("demo").bridge)
    yield played
    played.close()


@pytest.fixture
def feeds(runtime: RuntimeDir, bridge: PlayedBridge) -> Iterator[Callable[..., Feeds]]:
    """Make feeds of the VM demo, which end with the test."""
    made: list[Feeds] = []

    def make(since: int | None, follow: bool = True) -> Feeds:
        made.append(Feeds(runtime, since, follow))
        made[-1].add("demo")
        return made[-1]

    yield make
    for one in made:
        one.close()


def names(feeds: Feeds, count: int) -> list[str]:
    """Return the names of the next events."""
    found: list[str] = []
    for item in feeds.events(DEADLINE):
        if item.event is not None:
            found.append(name_of(item.event))
        if len(found) == count:
            break
    return found


def test_what_the_bridge_left_out_is_asked_for(bridge: PlayedBridge, feeds: Callable[..., Feeds]) -> None:
    bridge.happen("old")
    feed = feeds(None)
    # It begins where the journal ends.
    assert next(feed.events(DEADLINE)).position == 1
    a, _, _, d, e = bridge.happen("a", "b", "c", "d", "e")
    bridge.tell(a)
    bridge.tell(d)
    bridge.tell(d)  # as the one that it kept for a client that was slow
    bridge.tell(e)
    assert names(feed, 5) == ["a", "b", "c", "d", "e"]


def test_what_came_while_va_host_was_away_is_asked_for_once(
    bridge: PlayedBridge, feeds: Callable[..., Feeds]
) -> None:
    bridge.happen("a", "b")
    feed = feeds(0)
    assert names(feed, 2) == ["a", "b"]
    assert bridge.connected.acquire(timeout=DEADLINE)
    bridge.hang_up()
    c, _ = bridge.happen("c", "d")
    assert bridge.connected.acquire(timeout=DEADLINE)
    bridge.tell(c)  # late
    bridge.tell({}, "STOP")
    assert names(feed, 3) == ["c", "d", "STOP"]


def test_a_journal_that_begins_anew_is_read_from_its_beginning(
    bridge: PlayedBridge, feeds: Callable[..., Feeds], capsys: pytest.CaptureFixture[str]
) -> None:
    bridge.happen("a")
    assert names(feeds(50), 1) == ["a"]
    assert "begun anew" in capsys.readouterr().err


def test_a_feed_that_does_not_follow_ends_with_its_reason(
    runtime: RuntimeDir, bridge: PlayedBridge, feeds: Callable[..., Feeds]
) -> None:
    other = Feeds(runtime)
    other.add("other")
    with pytest.raises(NotThere, match="no VM named 'other'"):
        list(other.events(DEADLINE))
    feed = feeds(None, follow=False)
    with pytest.raises(CallTimeout, match="no such event of 'demo'"):
        list(feed.events(0.1))
    assert bridge.connected.acquire(timeout=DEADLINE)
    bridge.hang_up()
    assert all(item.event is None for item in feed.events(DEADLINE))


def test_a_pattern_is_for_the_guests_name_or_for_qemus() -> None:
    guests = {"event": "VA_GUEST_EVENT", "data": {"event": "backup.done", "data": {}}}
    for pattern in ("backup.*", "*", "backup.done", "VA_GUEST_EVENT", "[ab]*"):
        assert matches(guests, [pattern])
    for pattern in ("backup", "BACKUP.*", "SHUTDOWN", ""):
        assert not matches(guests, [pattern])
    assert matches({"event": "SHUTDOWN", "data": {}}, ["SHUT*"])
    # QEMU's events need have no data.
    assert environment("demo", {"event": "STOP"})["VA_EVENT_NAME"] == "STOP"


def test_what_a_guest_says_does_not_change_other_variables() -> None:
    data = {
        "PATH": "/evil",
        "a-b": 1,
        "x=y": 1,
        "": 1,
        "nul": "a\x00b",
        "list": [1],
        "on": True,
        "lone": "\ud800",
    }
    entry = {"event": "a", "data": data, "time": "t", "log": "l", "sequence": 1, "position": 2}
    told = environment("demo", {"event": "VA_GUEST_EVENT", "data": entry})
    assert all(name.startswith("VA_EVENT_") and name.replace("_", "").isalnum() for name in told)
    assert told["VA_EVENT_DATA_PATH"] == "/evil"
    assert told["VA_EVENT_DATA_NUL"] == "a\\x00b"
    assert told["VA_EVENT_DATA_ON"] == "true"
    assert "VA_EVENT_DATA_LIST" not in told
    assert "VA_EVENT_UID" not in told
    for value in told.values():
        value.encode()
