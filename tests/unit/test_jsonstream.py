"""The JSON splitter: any cut gives the same events, no bytes raise, memory stays bounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from virtagent_host.bridge.jsonstream import DEPTH_MAX, JsonEvent, JsonSplitter, JsonValue, ParseError

SMALL = 64

texts = st.text(max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=5
)
objects = st.lists(st.dictionaries(texts, json_values, max_size=3), max_size=4)
# Bytes that hit the splitter's decisions far more often than random ones do.
nasty_bytes = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b"'", b"\\", b"\xff", b"\n", b" ", b"a", b'"a":1', b"1", b"\xc3"]
    )
    | st.binary(max_size=3)
).map(b"".join)


def split(data: bytes, sizes: list[int] | None = None, value_max: int | None = None) -> list[JsonEvent]:
    splitter = JsonSplitter() if value_max is None else JsonSplitter(value_max)
    events: list[JsonEvent] = []
    for size in sizes or []:
        events += splitter.feed(data[:size])
        data = data[size:]
    events += splitter.feed(data)
    return events


@given(
    st.lists(json_values),
    st.sampled_from([b"\n", b"\r\n", b" ", b"\t \n"]),
    st.booleans(),
    st.lists(st.integers(1, 9)),
)
def test_values_come_out_equal_however_they_are_cut(
    values: list[object], separator: bytes, ascii_only: bool, sizes: list[int]
) -> None:
    data = b"".join(json.dumps(v, ensure_ascii=ascii_only).encode() + separator for v in values)
    assert split(data, sizes) == [JsonValue(v) for v in values]


@given(objects)
def test_objects_need_nothing_between_them(values: list[object]) -> None:
    assert split(b"".join(json.dumps(v).encode() for v in values)) == [JsonValue(v) for v in values]


@given(nasty_bytes, st.lists(st.integers(1, 5)))
@example(b'{"\\', [1])
def test_any_bytes_give_the_same_events_however_they_are_cut_in_bounded_memory(
    data: bytes, sizes: list[int]
) -> None:
    splitter = JsonSplitter(SMALL)
    events: list[JsonEvent] = []
    rest = data
    for size in [*sizes, len(data)]:
        events += splitter.feed(rest[:size])
        rest = rest[size:]
        assert len(splitter._buffer) <= SMALL
    assert events == split(data, [1] * len(data), SMALL)


@given(nasty_bytes)
def test_after_a_reset_byte_and_a_newline_the_next_value_is_heard(garbage: bytes) -> None:
    assert split(garbage + b'\xff\n{"a":1}')[-1] == JsonValue({"a": 1})


@given(objects, nasty_bytes)
def test_garbage_never_changes_the_values_before_it(values: list[object], garbage: bytes) -> None:
    data = b"".join(json.dumps(v).encode() for v in values)
    assert split(data + garbage)[: len(values)] == [JsonValue(v) for v in values]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"{'execute':'it\\'s \"'}", {"execute": "it's \""}),
        (b"""{"a'b":'}'}""", {"a'b": "}"}),
        (b'{"a":"}]\\"\\\\"}', {"a": '}]"\\'}),
        (b"[1,2.5,true,null]", [1, 2.5, True, None]),
        (b"42 ", 42),
        (b'"text"', "text"),
        (b'{"nul":"\\u0000"}', {"nul": "\0"}),
        (b'["\\ud83d\\ude00"]', ["\U0001f600"]),
    ],
)
def test_what_qemu_accepts_is_accepted(data: bytes, value: object) -> None:
    assert split(data) == [JsonValue(value)]


@pytest.mark.parametrize(
    ("data", "desc"),
    [
        (b'{"a":1,"a":2}', "duplicate key"),
        (b'{"a":"\xc3"}', "invalid UTF-8 sequence in string"),
        (b'{"a":NaN}', "invalid keyword 'NaN'"),
        (b'{"a":1e999}', "out of range"),
        (b'{"a":' + b"9" * 400 + b"}", "out of range"),
        (b"{a:1}", "JSON parse error, expecting property name"),
        (b"{]", "JSON parse error"),
        (b"}", "JSON parse error, expecting value"),
        (b"garbage ", "JSON parse error, expecting value"),
        (b"\xff", "stray"),
        (b'{"execute": "query-status"\xff', "stray"),
        (b'{"execute: "query-status"}\n', "unterminated string"),
        (b"[" * (DEPTH_MAX + 1) + b"\n", "nesting depth limit exceeded"),
    ],
)
def test_what_qemu_refuses_costs_one_error_and_the_next_value_is_heard(data: bytes, desc: str) -> None:
    error, after = split(data + b'{"a":1}')
    assert isinstance(error, ParseError)
    assert desc in error.desc
    assert after == JsonValue({"a": 1})


def test_the_deepest_nesting_is_accepted() -> None:
    [event] = split(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)
    assert isinstance(event, JsonValue)


def test_a_value_of_the_limit_is_taken_and_one_byte_more_is_refused() -> None:
    fits = b'"' + b"x" * (SMALL - 2) + b'"'
    assert split(fits, value_max=SMALL) == [JsonValue("x" * (SMALL - 2))]
    too_long = b'"' + b"x" * (SMALL - 1) + b'"\n{}'
    assert split(too_long, value_max=SMALL) == [ParseError("JSON token size limit exceeded"), JsonValue({})]


def test_an_endless_value_is_dropped_as_it_arrives() -> None:
    splitter = JsonSplitter(SMALL)
    events = [event for _ in range(1000) for event in splitter.feed(b'["' + b"x" * 100)]
    assert events == [ParseError("JSON token size limit exceeded")]
    assert len(splitter._buffer) <= SMALL
