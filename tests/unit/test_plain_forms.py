"""What is read by one match is read as the parser would: the quick ways of `reader` and `xmlrpc`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from virtagent_protocol import reader, xmlrpc
from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.messages import Request, Response, encode
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


def test_the_heads_of_requests_and_responses_are_the_same_read_by_a_match_or_line_by_line() -> None:
    for message in (Request("tag", b"body", SESSION), Response("!~", b"", SESSION)):
        block = encode(message)[1:].partition(b"\r\n\r\n")[0]
        plain, parsed = reader._plain_head(block), reader._parse_head(block)
        assert plain is not None
        assert plain.build is parsed.build
        assert plain.length == parsed.length
        build = plain.build
        assert build(plain.headers, 0, message.body) == build(parsed.headers, 0, message.body) == message


def test_heads_of_any_other_kind_are_left_to_the_parser() -> None:
    for message in (Request("tag", b"body"), Request("tag", b"body", SESSION)):
        block = encode(message, crc=True)[1:].partition(b"\r\n\r\n")[0]
        assert reader._plain_head(block) is None
    long = encode(Request("tag", b"", SESSION)).replace(b"Content-Length: 0", b"Content-Length: 9999999")
    assert reader._plain_head(long[1:].partition(b"\r\n\r\n")[0]) is None
