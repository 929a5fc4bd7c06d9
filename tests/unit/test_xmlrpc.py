"""The codec: what goes in comes out equal, or is refused where it is made."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vectors import as_value, load
from virtagent_protocol.errors import LocalProtocolError, RemoteProtocolError
from virtagent_protocol.limits import VALUE_DEPTH_MAX
from virtagent_protocol.values import Value
from virtagent_protocol.xmlrpc import (
    decode_call,
    decode_response,
    encode_call,
    encode_fault,
    encode_result,
)

VECTORS = load("values.json")
_HEAD = "<?xml version='1.0'?><methodResponse><params><param>"
_TAIL = "</param></params></methodResponse>"


def named(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", VECTORS[kind], ids=[case["name"] for case in VECTORS[kind]])


def decoded(value_element: str) -> Value:
    result, fault = decode_response((_HEAD + value_element + _TAIL).encode())
    assert fault is None
    return result


@named("written")
def test_a_value_is_written_exactly_as_the_vector(case: dict[str, Any]) -> None:
    value = as_value(case["value"])
    text = f"<value>{case['xml']}</value>"
    assert encode_result(value) == (_HEAD + text + _TAIL).encode()
    assert decoded(text) == value


@named("accepted")
def test_other_forms_are_accepted(case: dict[str, Any]) -> None:
    assert decoded(case["xml"]) == as_value(case["value"])


@named("refused")
def test_what_is_not_xml_rpc_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        decoded(case["xml"])


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff\xfe",
        b"<methodCall/>",
        b"<methodCall><params/><methodName>x</methodName></methodCall>",
        b"<methodCall><methodName>x</methodName><params><param/></params></methodCall>",
        b"<methodCall><methodName>two words</methodName></methodCall>",
        b"<methodResponse><params/></methodResponse>",
        b"<methodResponse><params><param><value/></param><param><value/></param></params></methodResponse>",
        b"<methodResponse><fault><value>x</value></fault></methodResponse>",
        b"<methodResponse/>",
        b"<!DOCTYPE x><methodCall><methodName>x</methodName></methodCall>",
        b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><methodResponse><params><param><value>&b;"
        b"</value></param></params></methodResponse>",
        b"<!DOCTYPE x SYSTEM 'file:///etc/passwd'><methodCall><methodName>x</methodName></methodCall>",
        b"<methodCall><methodName>x</methodName></methodCall>trailing",
        b"<methodCall><methodName>x</methodName></methodCall><methodCall/>",
    ],
)
def test_a_document_that_is_not_xml_rpc_is_refused(document: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_call(document)
    with pytest.raises(RemoteProtocolError):
        decode_response(document)


def test_a_call_without_params_is_a_call() -> None:
    assert decode_call(b"<methodCall><methodName>x</methodName></methodCall>") == ("x", [])


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("\x00", "U\\+0000"),
        ("a\x1bb", "U\\+001B"),
        ("\ud800", "U\\+D800"),
        ("\uffff", "U\\+FFFF"),
        (2**63, "64 bits"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        ((1, 2), "tuple"),
        ({1: 2}, "name of a member"),
        ({"a\x01": 2}, "U\\+0001"),
        (object(), "object"),
        ([{"deep": ["\x02"]}], r"result\[0\]\.deep\[0\]"),
    ],
    ids=repr,
)
def test_what_xml_rpc_cannot_carry_is_a_local_error_that_names_it(value: Any, complaint: str) -> None:
    with pytest.raises(LocalProtocolError, match=complaint):
        encode_result(value)


def nested(depth: int) -> Value:
    value: Value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_is_bounded_on_both_sides() -> None:
    deepest = nested(VALUE_DEPTH_MAX - 1)
    assert decode_response(encode_result(deepest)) == (deepest, None)
    with pytest.raises(LocalProtocolError, match="nested"):
        encode_result(nested(VALUE_DEPTH_MAX))
    too_deep = (
        "<value><array><data>" * VALUE_DEPTH_MAX + "<value/>" + "</data></array></value>" * VALUE_DEPTH_MAX
    )
    with pytest.raises(RemoteProtocolError, match="nested"):
        decoded(too_deep)


def test_a_fault_gets_through_whatever_it_quotes() -> None:
    assert decode_response(encode_fault(-3, "bad \x00 byte")) == (None, (-3, "bad \ufffd byte"))


_text = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]))
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_text, inner, max_size=5),
    max_leaves=20,
)


def strictly_equal(a: Value, b: Value) -> bool:
    """Equality that tells 1, 1.0 and True apart, as the wire does."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(strictly_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(strictly_equal(a[key], b[key]) for key in a)
    return a == b


@settings(max_examples=300, deadline=None)
@given(_values)
def test_a_value_comes_out_equal_or_does_not_go_in(value: Value) -> None:
    try:
        document = encode_call("t.echo", [value])
    except LocalProtocolError:
        return
    name, params = decode_call(document)
    assert name == "t.echo"
    assert strictly_equal(params[0], value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", _HEAD.encode() + b"<value>", b"<methodCall>"]))
def test_any_bytes_give_a_document_or_a_protocol_error(data: bytes, prefix: bytes) -> None:
    for decode in (decode_call, decode_response):
        try:
            decode(prefix + data)
        except RemoteProtocolError:
            continue
