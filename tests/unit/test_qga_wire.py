"""QEMU's guest agent's wire: bytes to commands and back. What is expected here was seen at qemu-ga 7.2."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtagent_protocol.qga.messages import (
    COMMAND_NOT_FOUND,
    Answer,
    Command,
    QgaError,
    Refusal,
    command,
    failure,
    parse_answer,
    parse_command,
    success,
)
from virtagent_protocol.qga.stream import (
    NESTING_MAX,
    TOKENS_MAX,
    JsonEvent,
    JsonProblem,
    JsonStream,
    JsonValue,
)

PING = b'{"execute":"guest-ping"}'
PINGED = JsonValue({"execute": "guest-ping"})


def stray(text: str) -> JsonProblem:
    return JsonProblem(f"JSON parse error, stray '{text}'")


def wrong(text: str) -> JsonProblem:
    return JsonProblem(f"JSON parse error, {text}")


EXPECTING = wrong("expecting value")

CASES: list[tuple[bytes, list[JsonEvent]]] = [
    (PING, [PINGED]),
    (b"\n \r\t" + PING + b"\n" + PING + PING, [PINGED, PINGED, PINGED]),
    (b"{'execute':'guest-ping'}", [PINGED]),
    # 0xFF ends what is unfinished, and costs one error.
    (b"\xff" + PING, [stray("\ufffd"), PINGED]),
    (PING[:10] + b"\xff" + PING, [stray("\ufffd"), PINGED]),
    (b'{"execute":"guest-p\xff' + PING, [stray('"guest-p\ufffd'), PINGED]),
    (b"abc\xff" + PING, [wrong("invalid keyword 'abc'"), stray("\ufffd"), PINGED]),
    # Garbage: one error, up to the next bracket, comma, colon or line.
    (b"GARBAGE x y\n" + PING, [stray("G"), PINGED]),
    (b"GET / HTTP/1.1\r\n\r\n" + PING, [stray("G"), PINGED]),
    (b'A"' + PING, [stray("A"), PINGED]),
    (b"A," + PING, [stray("A"), EXPECTING, PINGED]),
    (b"\x00\x01" + PING, [stray(""), stray("\x01"), PINGED]),
    (b"garbage\n", [wrong("invalid keyword 'garbage'")]),
    (b"garbage", []),
    (b"-\n" + PING, [stray("-\n"), PINGED]),
    (b"01\n" + PING, [stray("01"), PINGED]),
    (b"1.e\n" + PING, [stray("1.e"), PINGED]),
    (b"12a\n", [JsonValue(12), wrong("invalid keyword 'a'")]),
    (b"0.5 -0 1.5e+3\n", [JsonValue(0.5), JsonValue(0), JsonValue(1500.0)]),
    (b"[18446744073709551615,99999999999999999999]", [JsonValue([2**64 - 1, 1e20])]),
    (b"[1e999]", [wrong("number out of range")]),
    # Brackets of both kinds are counted, not matched.
    (b"}" + PING, [EXPECTING, PINGED]),
    (b"{]" + PING, [EXPECTING, PINGED]),
    (b"[{]}" + PING, [EXPECTING, PINGED]),
    (b'{"a":1]' + PING, [wrong("expected separator in dict"), PINGED]),
    (b"[1 2]", [wrong("expected separator in list")]),
    (b"[1,]", [EXPECTING]),
    (b'{"a" 2}', [wrong("missing : in object pair")]),
    (b"{1:2}", [wrong("key is not a string in object")]),
    (b'{"a":1,"a":2}', [wrong("duplicate key")]),
    (b"[true,false,null,{},[]]", [JsonValue([True, False, None, {}, []])]),
    # Strings.
    (
        b'["\\"\\\'\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\xc3\xa9"]',
        [JsonValue(["\"'\\/\b\f\n\r\té😀é"])],
    ),
    (b'["\xc0\x80\\u0000"]', [JsonValue(["\0\0"])]),
    (b'["\xc3("]', [wrong("invalid UTF-8 sequence in string")]),
    (b'["\xef\xbf\xbf"]', [wrong("invalid UTF-8 sequence in string")]),
    (b'["\xed\xa0\x80"]', [wrong("invalid UTF-8 sequence in string")]),
    (b'["\\q"]', [wrong("invalid escape sequence in string")]),
    (b'["\\ud83d\\u0041"]', [wrong("\\ud83d is not a valid Unicode character")]),
    (b'["\\u12"]', [wrong('\\u12" is not a valid Unicode character')]),
    (b'{"execute":"gu\x01est"}' + PING, [stray('"gu\x01'), EXPECTING, PINGED]),
    (b'"abc\n' + PING, [stray('"abc\n'), PINGED]),
    (b'"\\\n' + PING, [stray('"\\\n'), PINGED]),
]


def read(data: bytes, step: int, **limits: int) -> list[JsonEvent]:
    stream = JsonStream(**limits)
    return [event for at in range(0, len(data), step) for event in stream.feed(data[at : at + step])]


@pytest.mark.parametrize(("data", "expected"), CASES)
@pytest.mark.parametrize("step", [1, 2, 7, 10**6])
def test_a_stream_gives_what_qemu_ga_makes_of_it(data: bytes, expected: list[JsonEvent], step: int) -> None:
    assert read(data, step) == expected


def test_what_is_too_long_costs_an_error_and_no_memory() -> None:
    stream = JsonStream(value_max=1000)
    assert list(stream.feed(b'"')) == []
    events = [event for _ in range(1000) for event in stream.feed(b"x" * 100)]
    assert events == [JsonProblem("JSON token size limit exceeded")]
    assert list(stream.feed(b"\n" + PING))[-1:] == [PINGED]
    # Many small tokens are as long as one.
    assert JsonProblem("JSON token size limit exceeded") in read(b"[" + b"12345," * 1000, 10, value_max=1000)


def test_a_string_of_the_greatest_length_is_taken_and_one_more_is_not() -> None:
    assert read(b'"' + b"x" * 98 + b'"', 9, value_max=100) == [JsonValue("x" * 98)]
    for step in (1, 9, 1000):
        assert read(b'"' + b"x" * 99 + b'"\n', step, value_max=100) == [
            JsonProblem("JSON token size limit exceeded")
        ]


def test_tokens_and_nesting_are_bounded() -> None:
    assert read(b"[" + b"1," * TOKENS_MAX, 4096)[0] == JsonProblem("JSON token count limit exceeded")
    deep = b"[" * NESTING_MAX + b"]" * NESTING_MAX
    (event,) = read(deep, 100)
    assert isinstance(event, JsonValue)
    assert json.dumps(event.value)
    assert read(b"[" * (NESTING_MAX + 1), 100) == [JsonProblem("JSON nesting depth limit exceeded")]


@given(st.lists(st.binary(max_size=60), max_size=8))
@settings(max_examples=300)
def test_any_bytes_give_values_and_problems_however_they_are_cut(pieces: list[bytes]) -> None:
    stream = JsonStream(value_max=200)
    events = [event for piece in pieces for event in stream.feed(piece)]
    assert events == read(b"".join(pieces), 1, value_max=200)
    assert all(isinstance(event, (JsonValue, JsonProblem)) for event in events)
    # Whatever came before, a sync gets through.
    following = list(stream.feed(b"\xff" + PING))
    assert following[-1] == PINGED


@given(
    st.text(alphabet="{}[],:\"'\\\n 01-.eEtrufalsn\xffA", max_size=80).map(
        lambda text: text.encode("latin-1")
    )
)
@settings(max_examples=500)
def test_what_json_itself_reads_is_read_the_same(data: bytes) -> None:
    try:
        expected = json.loads(data.decode("latin-1"), object_pairs_hook=_no_twice)
    except (ValueError, RecursionError):
        expected = None
    if isinstance(expected, (dict, list)) and data.isascii():
        assert read(data, 3) in ([JsonValue(expected)], [wrong("number out of range")])


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


@pytest.mark.parametrize(
    ("value", "desc"),
    [
        ([1], "QMP input must be a JSON object"),
        ({}, "QMP input lacks member 'execute'"),
        ({"execute": None}, "QMP input member 'execute' must be a string"),
        ({"execute": "x", "arguments": None}, "QMP input member 'arguments' must be an object"),
        ({"execute": "x", "foo": 1}, "QMP input member 'foo' is unexpected"),
        ({"exec-oob": "x"}, "QMP input member 'exec-oob' is unexpected"),
    ],
)
def test_a_value_that_is_no_command_is_refused_in_qemus_words(value: object, desc: str) -> None:
    refusal = parse_command(value)
    assert isinstance(refusal, Refusal)
    assert refusal.error.desc == desc


def test_an_id_of_any_type_is_returned() -> None:
    for given_id in (1, None, "x", {"a": [1.5]}):
        parsed = parse_command({"execute": "guest-ping", "id": given_id})
        assert parsed == Command("guest-ping", {}, {"id": given_id})
        assert isinstance(parsed, Command)
        assert json.loads(success(None, parsed.id)) == {"return": {}, "id": given_id}
    refusal = parse_command({"id": 5})
    assert isinstance(refusal, Refusal)
    assert json.loads(failure(refusal.error, refusal.id))["id"] == 5


def test_answers_are_lines_of_ascii_and_one_may_begin_with_the_sentinel() -> None:
    assert success({"a": "é\n"}, {}) == b'{"return": {"a": "\\u00e9\\n"}}\n'
    assert success(12, {}, delimited=True) == b'\xff{"return": 12}\n'
    assert failure(QgaError("no", COMMAND_NOT_FOUND), {}) == (
        b'{"error": {"class": "CommandNotFound", "desc": "no"}}\n'
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        success(float("inf"), {})


def test_what_one_end_writes_the_other_reads() -> None:
    (event,) = read(command("guest-file-open", {"path": "/é"}), 1)
    assert isinstance(event, JsonValue)
    assert parse_command(event.value) == Command("guest-file-open", {"path": "/é"}, {})
    (event,) = read(success([1, None], {}), 1)
    assert isinstance(event, JsonValue)
    assert parse_answer(event.value) == Answer([1, None])
    (event,) = read(failure(QgaError("d", "C"), {}), 1)
    assert isinstance(event, JsonValue)
    answer = parse_answer(event.value)
    assert answer is not None
    assert answer.error is not None
    assert (answer.error.desc, answer.error.error_class) == ("d", "C")


@pytest.mark.parametrize(
    "value", [1, [], {}, {"error": 1}, {"error": {"class": 1, "desc": "x"}}, {"event": "x"}]
)
def test_what_is_no_answer_is_none(value: object) -> None:
    assert parse_answer(value) is None
