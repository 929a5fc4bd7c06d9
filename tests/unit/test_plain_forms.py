"""What is read by one match is read as the parser would: the quick ways of `reader` and `xmlrpc`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.messages import Message, Request, Response, encode
from virtagent_protocol.reader import Event, MessageReader
from virtagent_protocol.values import Value

SESSION = "0123456789abcdef-fedcba9876543210"

scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5),
    st.binary(max_size=20),
    st.none(),
)


@given(st.lists(scalars, max_size=5))
def test_a_call_is_the_same_read_by_a_match_or_parsed(params: list[Value]) -> None:
    body = xmlrpc.encode_call("va.method", params)
    assert xmlrpc.decode_call(body) == ("va.method", params)
    assert xmlrpc._parse(body) == ("methodCall", "va.method", params)


@given(st.binary(max_size=40), st.integers(0, 200))
def test_a_call_that_was_changed_is_read_as_the_parser_reads_it(change: bytes, at: int) -> None:
    body = bytearray(xmlrpc.encode_call("va.method", [1, "text", True]))
    body[at : at + len(change)] = change
    quick = xmlrpc._PLAIN_CALL.fullmatch(bytes(body))
    if quick is not None:
        # The parser must take it as well, unless a value is no value, which both refuse alike.
        assert _outcome(xmlrpc.decode_call, bytes(body)) == _outcome(_parsed, bytes(body))


def _parsed(body: bytes) -> object:
    _, name, params = xmlrpc._parse(body)
    return name, params


def _outcome(read: object, body: bytes) -> object:
    assert callable(read)
    try:
        return read(body)
    except RemoteProtocolError as error:
        return str(error)


messages = st.builds(
    lambda kind, tag, body: kind(tag, body, SESSION),
    st.sampled_from([Request, Response]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=62),
    st.binary(max_size=100),
)


def _read_without_a_match(data: bytes) -> list[Event]:
    slow = MessageReader()
    slow._read_plain = lambda: None  # type: ignore[method-assign]
    return slow.feed(data)


@given(st.lists(messages, max_size=3), st.binary(max_size=20), st.integers(0, 300))
def test_requests_and_responses_are_the_same_read_by_a_match_or_line_by_line(
    sent: list[Message], change: bytes, at: int
) -> None:
    data = b"".join(map(encode, sent))
    assert MessageReader().feed(data) == _read_without_a_match(data) == sent
    garbled = bytearray(data)
    garbled[at : at + len(change)] = change
    assert MessageReader().feed(bytes(garbled)) == _read_without_a_match(bytes(garbled))


def test_heads_of_any_other_kind_are_left_to_the_parser() -> None:
    session_less, summed_up = encode(Request("tag", b"body")), encode(Request("tag", b"", SESSION), crc=True)
    longer = encode(Request("tag", b"", SESSION)).replace(b"Content-Length: 0", b"Content-Length: 9999999")
    for data in (session_less, summed_up, longer, encode(Request("tag", b"x" * 5000, SESSION))):
        reader = MessageReader()
        reader._hunting = False
        reader._buffer += data
        assert reader._read_plain() is None


def test_messages_are_written_the_same_with_and_without_the_headers_in_a_list() -> None:
    for message in (Request("tag", b"body", SESSION), Response("!~", b"", SESSION)):
        summed_up = encode(message, crc=True)
        head, _, rest = summed_up.partition(b"\r\nX-Virtagent-CRC: ")
        assert encode(message) == head + rest[8:]
