"""The reader: whole, byte by byte, truncated, with trailing bytes; and whatever hypothesis thinks of."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vectors import as_bytes, as_message, load
from virtagent_protocol import reader
from virtagent_protocol.errors import LocalProtocolError
from virtagent_protocol.limits import BODY_MAX, HEADER_MAX, STREAM_BODY_MAX
from virtagent_protocol.messages import (
    Cancel,
    Message,
    Request,
    StreamCredit,
    StreamData,
    StreamEnd,
    checksum,
    encode,
)
from virtagent_protocol.reader import Drop, DropCause, Event, MessageReader

GOOD = load("messages.json")["cases"]
RESYNC = load("resync.json")["cases"]


def named(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def read(*pieces: bytes) -> list[Event]:
    made = MessageReader()
    return [event for piece in pieces for event in made.feed(piece)]


def split(events: list[Event]) -> tuple[list[str], list[Message]]:
    drops = [event.cause.value for event in events if isinstance(event, Drop)]
    return drops, [event for event in events if not isinstance(event, Drop)]


@named(GOOD)
def test_an_encoder_gives_exactly_the_bytes_of_the_vector(case: dict[str, Any]) -> None:
    assert encode(as_message(case["message"]), crc=case.get("crc", False)) == as_bytes(case["bytes"])


@named(GOOD)
def test_a_message_is_read_whole_byte_by_byte_and_with_trailing_data(case: dict[str, Any]) -> None:
    data, message = as_bytes(case["bytes"]), as_message(case["message"])
    assert read(data) == [message]
    assert read(*(data[i : i + 1] for i in range(len(data)))) == [message]
    assert read(data + data[:-1]) == [message]
    assert read(data + data, data) == [message] * 3


@named(GOOD)
def test_a_truncated_message_is_never_an_event(case: dict[str, Any]) -> None:
    data = as_bytes(case["bytes"])
    for end in range(len(data)):
        reader = MessageReader()
        assert reader.feed(data[:end]) == []
        assert reader.incomplete is (end > 1)


@named(GOOD)
def test_a_truncated_message_costs_only_itself_once_it_is_abandoned(case: dict[str, Any]) -> None:
    data, message = as_bytes(case["bytes"]), as_message(case["message"])
    for end in range(2, len(data)):
        reader = MessageReader()
        reader.feed(data[:end])
        drops, messages = split(reader.abandon())
        assert drops[0] == "abandoned"
        assert not reader.incomplete or messages == []
        # What a body held may look like the begin of a message; then one more is given up with it.
        reader.abandon()
        assert message in reader.feed(data)


@named(RESYNC)
def test_bad_bytes_are_dropped_for_a_cause_and_the_reader_resyncs(case: dict[str, Any]) -> None:
    data = as_bytes(case["bytes"])
    expected = (case["drops"], [as_message(message) for message in case["messages"]])
    assert split(read(data)) == expected
    assert split(read(*(data[i : i + 1] for i in range(len(data))))) == expected


def test_a_message_that_a_cut_body_has_swallowed_is_found_when_the_body_is_abandoned() -> None:
    dead = encode(Request("dead", b"x" * 5000))[:-1000]
    alive = Cancel("alive")
    reader = MessageReader()
    assert reader.feed(dead + encode(alive)) == []
    assert split(reader.abandon()) == (["abandoned"], [alive])


def test_a_length_over_the_limit_is_refused_before_a_byte_of_the_body_is_held() -> None:
    reader = MessageReader()
    head = b"\xffPOST /RPC2 HTTP/1.1\r\nContent-Type: text/xml\r\nX-Virtagent-Client-Tag: t\r\n"
    reader.feed(head + b"Content-Length: 2097153\r\n\r\n")
    for _ in range(100):
        reader.feed(b"x" * 65536)
    assert len(reader._buffer) == 0


@pytest.mark.parametrize(
    "message",
    [
        Cancel(""),
        Cancel("a b"),
        Cancel("a" * 63),
        Cancel("\r\n"),
        Cancel("\udcff"),
        Cancel("t", session="short"),
        Request("t", b"x" * (BODY_MAX + 1)),
        StreamData(1, b"x" * (STREAM_BODY_MAX + 1)),
        StreamData(0, b""),
        StreamCredit(1, 0),
        StreamCredit(2**31, 1),
        StreamEnd(1, "two words"),
    ],
    ids=lambda message: repr(message)[:40],
)
def test_what_the_protocol_cannot_carry_is_a_local_error(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


def test_where_checksums_are_agreed_on_a_message_of_the_session_without_one_is_dropped() -> None:
    session = "00000000000000a1-00000000000000b2"
    reader = MessageReader()
    reader.crc_required = True
    checked, bare, hello = Cancel("a", session), Cancel("b", session), Request("c", b"")
    assert reader.feed(encode(checked, crc=True)) == [checked]
    assert split(reader.feed(encode(bare))) == (["crc"], [])
    assert reader.feed(encode(hello)) == [hello]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_a_checked_message_with_any_flipped_bit_is_never_taken_for_another(
    case: dict[str, Any], data: st.DataObject
) -> None:
    message = as_message(case["message"])
    wire = bytearray(encode(message, crc=True))
    bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    reader = MessageReader()
    reader.crc_required = True
    events = [*reader.feed(bytes(wire)), *reader.feed(encode(Cancel("end"), crc=True))]
    # Without a session it may be read if the flip hit the name of the checksum's header.
    for event in events:
        assert isinstance(event, Drop) or event in (message, Cancel("end")) or event.session is None


#: Pieces that a fuzzer would take long to find: real messages and their parts among noise.
_pieces = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([as_bytes(case["bytes"]) for case in GOOD + RESYNC if len(case["bytes"]) < 2000]),
    st.sampled_from(
        [b"\xff", b"\r\n\r\n", b"POST /RPC2 HTTP/1.1\r\n", b"Content-Length: 40\r\n", b"\xff\xff"]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_pieces, max_size=12), st.data())
def test_any_bytes_give_the_same_events_however_they_are_cut(
    pieces: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(*parts) == read(whole)


@settings(max_examples=200, deadline=None)
@given(st.lists(_pieces, max_size=40))
def test_the_reader_never_holds_more_than_one_message(pieces: list[bytes]) -> None:
    reader = MessageReader()
    for piece in pieces:
        reader.feed(piece)
        assert len(reader._buffer) <= HEADER_MAX + BODY_MAX + 1 + len(piece)
        if not reader.incomplete:
            assert len(reader._buffer) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(_pieces, max_size=12))
def test_after_any_bytes_a_quiet_moment_makes_the_reader_whole_again(pieces: list[bytes]) -> None:
    reader = MessageReader()
    for piece in pieces:
        reader.feed(piece)
    # Each abandon ends one unfinished message; what it hid may be another, but never for ever.
    for _ in range(len(b"".join(pieces)) + 1):
        if not reader.incomplete:
            break
        reader.abandon()
    assert not reader.incomplete
    assert reader.feed(encode(Cancel("t"))) == [Cancel("t")]


def test_bodies_nested_in_bodies_of_wrong_checksum_are_summed_up_twice_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summed = 0

    def count(lines: list[bytes], body: bytes) -> bytes:
        nonlocal summed
        summed += len(body)
        return checksum(lines, body)

    monkeypatch.setattr(reader, "checksum", count)
    whole = encode(Request("t", bytes(100_000)), crc=True)
    head = re.sub(rb"CRC: .{8}", b"CRC: 00000000", whole[: -len(bytes(100_000)) - 1])
    sent = head * 1000 + b"\xff" * 200_000
    assert len(MessageReader().feed(sent)) > 1
    assert summed <= 2 * len(sent)


def test_no_stream_is_0_but_credit_may_be_for_the_link() -> None:
    messages = [b"PUT", b"DELETE", b"POST"]
    lines = [b"\xff%b /streams/0 HTTP/1.1\r\n" % method for method in messages]
    headers = b"X-Virtagent-Credit: 5\r\nX-Virtagent-Reason: eof\r\nContent-Length: 0\r\n"
    put = b"Content-Type: application/octet-stream\r\n"
    events = MessageReader().feed(b"".join(line + put + headers + b"\r\n\xff" for line in lines))
    assert events == [Drop(DropCause.START_LINE), Drop(DropCause.START_LINE), StreamCredit(0, 5)]
