"""The guest's log of events, and the file in which it outlives the agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtagent_guest.events import log as log_module
from virtagent_guest.events import store as store_module
from virtagent_guest.events.log import EVENTS_MAX, OWN_EVENTS_MAX, EventLog
from virtagent_guest.local.caller import Caller
from virtagent_protocol.errors import LocalProtocolError, RemoteProtocolError
from virtagent_protocol.events import BATCH_EVENTS_MAX, DATA_MAX, Batch, GuestEvent, parse_data
from virtagent_protocol.values import Struct

ALICE, BOB = Caller(10, 1000, 1000, "alice"), Caller(11, 1001, 1001, "bob")


def held(events: EventLog) -> list[int]:
    """Return the numbers of all events that are held."""
    return list(events._events)


def test_events_are_numbered_from_one_and_sent_in_order() -> None:
    events = EventLog(lambda: 1.5)
    assert [events.emit("a", {"n": n}) for n in range(3)] == [1, 2, 3]
    batch = events.batch()
    assert [(event.sequence, event.data, event.time) for event in batch.events] == [
        (1, '{"n":0}', 1_500_000),
        (2, '{"n":1}', 1_500_000),
        (3, '{"n":2}', 1_500_000),
    ]
    assert Batch.from_value(batch.to_value()) == Batch(events.id, 0, list(batch.events))


def test_what_is_confirmed_is_forgotten_and_what_is_not_is_sent_again() -> None:
    events = EventLog()
    for n in range(3):
        events.emit("a", {"n": n})
    events.confirm(2)
    assert [event.sequence for event in events.batch().events] == [3]
    assert events.batch().confirmed == 2
    events.confirm(1)  # late
    events.confirm(99)  # nonsense
    assert [event.sequence for event in events.batch().events] == [3]
    events.confirm(3)
    assert len(events) == 0
    assert events.emit("a", {}) == 4


def test_a_batch_is_bounded_in_number_and_in_size() -> None:
    events = EventLog()
    for _ in range(BATCH_EVENTS_MAX + 1):
        events.emit("a", {})
    assert len(events.batch().events) == BATCH_EVENTS_MAX
    events = EventLog()
    for _ in range(40):
        events.emit("a", {"text": "x" * (DATA_MAX - 20)})
    assert 1 < len(events.batch().events) < 20


def test_the_caller_goes_with_the_event_and_its_name_is_made_harmless() -> None:
    events = EventLog()
    events.emit("a", {}, Caller(5, 1000, 100, "evil\x1b[2J"))
    (event,) = events.batch().events
    assert event.caller == {"pid": 5, "uid": 1000, "gid": 100, "user": "evil\\x1b[2J"}


def test_a_user_who_fills_the_room_loses_the_oldest_of_his_own() -> None:
    events = EventLog()
    events.emit("bobs", {}, BOB)
    events.emit("agents", {})
    for _ in range(EVENTS_MAX + 5):
        events.emit("flood", {}, ALICE)
    numbers = held(events)
    assert numbers[:2] == [1, 2]
    # One of the places is bob's.
    assert numbers[2] == 9
    assert numbers[-1] == events.last


def test_many_users_cannot_take_the_room_of_the_agent() -> None:
    events = EventLog()
    events.emit("agents", {})
    for uid in range(EVENTS_MAX + 10):
        events.emit("flood", {}, Caller(1, uid, 1, "x"))
    assert held(events)[0] == 1
    assert len(events) == EVENTS_MAX + 1


def test_large_events_are_bounded_by_their_size() -> None:
    events = EventLog()
    for _ in range(400):
        events.emit("flood", {"text": "x" * (DATA_MAX - 20)}, ALICE)
    assert sum(len(event.data) for event in events._events.values()) <= log_module.DATA_MAX
    assert held(events)[-1] == 400


def test_the_agents_own_events_are_bounded_too() -> None:
    events = EventLog()
    for _ in range(OWN_EVENTS_MAX + 1):
        events.emit("own", {})
    assert held(events) == list(range(2, OWN_EVENTS_MAX + 2))


@pytest.mark.parametrize(
    "name", ["", "A", "backup done", "backup.", ".backup", "backup..done", "1st", "a" * 65, "a\n"]
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be an event's name"):
        EventLog().emit(name, {})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"a": b"bytes"}, "must be what JSON carries"),
        ({"a": float("nan")}, "must be what JSON carries"),
        ({"a": "x" * DATA_MAX}, "at most 8192"),
        ("[1]", "must be a JSON object"),
        ('{"a": NaN}', "is no number that JSON has"),
        ("{", "is not JSON"),
        ('{"a":' + "[" * 40 + "]" * 40 + "}", "nested"),
        ('{"a":' * 1500, "not JSON"),
    ],
)
def test_data_that_is_no_json_object_is_refused(data: object, why: str) -> None:
    events = EventLog()
    with pytest.raises(LocalProtocolError, match=why):
        events.emit("a", data)  # type: ignore[arg-type]
    assert events.last == 0


def test_control_characters_travel_in_data() -> None:
    events = EventLog()
    events.emit("a", {"text": "\x00\x1b\r\n\ud800"})
    (event,) = events.batch().events
    assert event.data.isascii()
    assert parse_data(event.data) == {"text": "\x00\x1b\r\n\ud800"}


GOOD = GuestEvent(2, 1, "a", "{}", {"pid": 1, "uid": 0, "gid": 0, "user": "root"}).to_value()


@pytest.mark.parametrize(
    "wrong",
    [
        {"sequence": 0},
        {"sequence": 2**53},
        {"sequence": True},
        {"time": -1},
        {"time": 2**62},
        {"name": "A"},
        {"data": "[]"},
        {"data": '{"a": 1' + " " * DATA_MAX + "}"},
        {"caller": {"pid": 1, "uid": -1, "gid": 0, "user": "root"}},
        {"caller": {"pid": 1, "uid": 0, "gid": 0, "user": "x" * 65}},
        {"caller": {"pid": 1}},
    ],
)
def test_a_received_event_of_another_shape_is_refused(wrong: Struct) -> None:
    GuestEvent.from_value(GOOD)
    with pytest.raises(RemoteProtocolError):
        GuestEvent.from_value({**GOOD, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"log": "x"},
        {"confirmed": -1},
        {"confirmed": 2},
        {"events": []},
        {"events": [GOOD, GOOD]},
        {"events": [1]},
    ],
)
def test_a_received_batch_of_another_shape_is_refused(wrong: Struct) -> None:
    batch: Struct = {"log": "0123456789abcdef", "confirmed": 1, "events": [GOOD]}
    Batch.from_value(batch)
    with pytest.raises(RemoteProtocolError):
        Batch.from_value({**batch, **wrong})


# --- The file --------------------------------------------------------------------------------------------


def test_an_agent_that_is_started_again_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    path = tmp_path / "unsent"
    first = EventLog()
    first.keep(path)
    first.emit("a", {"n": 1}, ALICE)
    first.emit("b", {"n": 2})
    first.confirm(1)
    second = EventLog()
    second.emit("early", {})
    second.keep(path)
    assert second.id == first.id
    assert [(event.sequence, event.name) for event in second.batch().events] == [(2, "b"), (3, "early")]
    assert second.batch().confirmed == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_numbers_go_on_although_nothing_is_left_to_send(tmp_path: Path) -> None:
    path = tmp_path / "unsent"
    first = EventLog()
    first.keep(path)
    first.emit("a", {})
    first.confirm(1)
    second = EventLog()
    second.keep(path)
    assert second.emit("b", {}) == 2
    third = EventLog()
    third.keep(path)
    assert [event.name for event in third.batch().events] == ["b"]


def test_an_agent_that_was_killed_at_any_byte_leaves_a_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "unsent"
    events = EventLog()
    events.keep(path)
    head = path.stat().st_size
    for n in range(3):
        events.emit("a", {"n": n})
    data = path.read_bytes()
    for end in range(head, len(data) + 1):
        path.write_bytes(data[:end])
        again = EventLog()
        again.keep(path)
        assert len(again) == data[:end].count(b"\n") - 1
        assert again.emit("next", {}) == len(again)


@pytest.mark.parametrize(
    "junk", [b"", b"junk\n", b"{}\n", b"[]\n", b'{"log":"x","confirmed":0,"next":1}\n', b"\xff\n"]
)
def test_a_file_that_is_damaged_is_replaced(
    tmp_path: Path, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "unsent"
    path.write_bytes(junk)
    events = EventLog()
    events.keep(path)
    assert "are lost" in caplog.text
    events.emit("a", {})
    again = EventLog()
    again.keep(path)
    assert (again.id, len(again)) == (events.id, 1)


def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "unsent").symlink_to(target)
    events = EventLog()
    events.keep(tmp_path / "unsent")
    events.emit("a", {})
    assert target.read_text() == "precious"


def test_the_file_is_written_anew_before_it_grows_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SIZE_MAX", 4096)
    path = tmp_path / "unsent"
    events = EventLog()
    events.keep(path)
    for n in range(500):
        events.emit("a", {"n": n})
        events.confirm(events.last - 3)
        assert path.stat().st_size <= 4096 + 256
    again = EventLog()
    again.keep(path)
    assert held(again) == [498, 499, 500]


def test_a_directory_that_cannot_be_written_costs_only_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = EventLog()
    events.keep(tmp_path / "missing" / "unsent")
    assert "will have forgotten" in caplog.text
    events.emit("a", {})
    assert len(events) == 1


def test_what_had_no_room_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "EVENTS_MAX", 3)
    events = EventLog()
    events.keep(tmp_path / "unsent")
    events.emit("bobs", {}, BOB)
    for _ in range(4):
        events.emit("flood", {}, ALICE)
    assert held(events) == [1, 4, 5]
    events.confirm(1)
    again = EventLog()
    again.keep(tmp_path / "unsent")
    assert held(again) == [4, 5]


def test_a_file_that_can_be_written_no_more_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "unsent"
    events = EventLog()
    events.keep(path)
    # A write that is cut short is what a full /run does.
    monkeypatch.setattr(os, "write", lambda file, data: len(data) - 1)
    events.emit("a", {})
    assert "no space left" in caplog.text
    assert not path.exists()
    events.emit("b", {})
    assert len(events) == 2
