"""Memory that is used again, and what a reader makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtagent_protocol.buffers import BufferPool
from virtagent_protocol.limits import STREAM_BODY_MAX
from virtagent_protocol.messages import Cancel, StreamData, encode
from virtagent_protocol.reader import Drop, Event, MessageReader


def test_a_buffer_is_used_again_when_nobody_refers_to_it() -> None:
    pool = BufferPool(2)
    first = pool.take(100)
    first[:] = b"a" * 100
    view = memoryview(first)[10:20]
    number = id(first)
    del first
    second = pool.take(100)
    assert id(second) != number, "a view still refers to it"
    assert bytes(view) == b"a" * 10
    del view
    assert id(pool.take(100)) == number


@pytest.mark.parametrize("size", [1, 99, 101, 100_000])
def test_a_buffer_that_is_used_again_has_the_size_that_was_asked_for(size: int) -> None:
    pool = BufferPool(1)
    pool.take(100)
    assert len(pool.take(size)) == size


def test_no_more_buffers_are_kept_than_was_said() -> None:
    pool = BufferPool(2)
    taken = [pool.take(10) for _ in range(5)]
    assert len({id(buffer) for buffer in taken}) == 5
    assert len(pool._buffers) == 2


def put(reader: MessageReader, data: bytes, most: int) -> list[Event]:
    """Give *data* to a reader as a transport does: into the space that it offers."""
    events: list[Event] = []
    while data:
        space = reader.space()
        count = min(len(space), len(data), most)
        space[:count] = data[:count]
        reader.filled(space, count)
        data = data[count:]
        del space
        events += reader.events()
    return events


LARGE = StreamData(1, bytes(range(256)) * 1000, "00000000000000a1-00000000000000b2")


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, STREAM_BODY_MAX), min_size=1, max_size=4),
    most=st.sampled_from([1000, 4096, 60_000, STREAM_BODY_MAX * 2]),
)
def test_what_is_put_into_the_readers_space_is_read_as_what_it_is_fed(sizes: list[int], most: int) -> None:
    messages = [StreamData(1, b"%d" % n + bytes(size), LARGE.session) for n, size in enumerate(sizes)]
    messages = [StreamData(m.stream, m.data[:STREAM_BODY_MAX], m.session) for m in messages]
    data = b"".join(map(encode, messages))
    assert put(MessageReader(), data, most) == messages
    reader = MessageReader()
    assert [e for at in range(0, len(data), most) for e in reader.feed(data[at : at + most])] == messages


def test_a_large_body_that_was_cut_short_is_searched_from_its_first_byte_on() -> None:
    reader = MessageReader()
    hidden = encode(Cancel("hidden"))
    cut = encode(LARGE)[:-100_000] + hidden
    assert put(reader, cut, 50_000) == []
    events = put(reader, encode(LARGE) + encode(LARGE), 50_000)
    assert [type(event) for event in events if isinstance(event, Drop)], "the lie was not noticed"
    assert Cancel("hidden") in events
    assert events[-1] == LARGE


def test_what_comes_for_a_body_that_was_given_up_meanwhile_is_not_lost() -> None:
    reader = MessageReader()
    assert put(reader, encode(LARGE)[:100_000], 50_000) == []
    # A transport waits for bytes to put here, while somebody gives the message up.
    space = reader.space()
    assert isinstance(reader.abandon()[0], Drop)
    alive = encode(Cancel("alive"))
    space[: len(alive)] = alive
    reader.filled(space, len(alive))
    assert Cancel("alive") in list(reader.events())


def test_the_data_of_one_message_is_not_changed_by_the_next() -> None:
    reader = MessageReader()
    (first,) = put(reader, encode(LARGE), 50_000)
    others = [StreamData(1, bytes([n]) * 200_000, LARGE.session) for n in range(20)]
    for other in others:
        assert put(reader, encode(other), 50_000) == [other]
    assert first == LARGE
