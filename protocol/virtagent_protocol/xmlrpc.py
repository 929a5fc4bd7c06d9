"""Values ↔ XML-RPC documents (SPEC.md section 5).

The rules:

1. What goes in comes out equal, or `LocalProtocolError` says at once which value XML-RPC cannot
   carry. Nothing is rounded, normalised or replaced on the way.
2. A carriage return is written as a character reference: an XML parser turns a bare one into a
   line feed. Most other control characters have no form in XML at all: they must go as bytes.
3. Parsing is by defusedxml's parser: DTDs, entities and external references are refused, not
   expanded. What it accepts must then be exactly the grammar of XML-RPC: an element in the wrong
   place, a second value, a stray text is a `RemoteProtocolError`, never a guess.
4. Depth and number of elements are bounded (`VALUE_DEPTH_MAX`, `ELEMENTS_MAX`) in both directions; size is
   bounded by the message's body. So a document costs its reader a bounded time, not only bounded memory.
"""

from __future__ import annotations

import binascii
import math
import re
from collections.abc import Callable
from xml.etree.ElementTree import ParseError
from xml.parsers.expat import ExpatError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from .errors import LocalProtocolError, RemoteProtocolError
from .limits import ELEMENTS_MAX, FAULT_STRING_MAX, MARKUP_MAX, VALUE_DEPTH_MAX
from .values import Struct, Value, as_struct, member

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1

#: What XML 1.0 section 2.2 does not call a Char.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SPECIAL = re.compile("[&<>\r]")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
_METHOD_NAME = re.compile(r"[A-Za-z0-9_.:/]{1,255}")

_HEAD = "<?xml version='1.0'?>"


def text_or_bytes(data: bytes) -> str | bytes:
    """Return *data* as the string that it is, if it is UTF-8 and XML can carry it; else as it is."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    return data if _NOT_XML.search(text) else text


def encode_call(method: str, params: list[Value]) -> bytes:
    """Return a methodCall document.

    Raises:
        LocalProtocolError: the name is not a method name, or a parameter cannot be carried.
    """
    if not _METHOD_NAME.fullmatch(method):
        raise LocalProtocolError(f"{method!r} is not a method name (letters, digits, '_', '.', ':' and '/')")
    out = [_HEAD, "<methodCall><methodName>", method, "</methodName><params>"]
    for number, value in enumerate(params, 1):
        out.append("<param>")
        _write(value, out, f"parameter {number} of {method}", 0)
        out.append("</param>")
    out.append("</params></methodCall>")
    return _document(out, f"the call of {method}")


def encode_result(value: Value) -> bytes:
    """Return a methodResponse document that carries a result.

    Raises:
        LocalProtocolError: the value cannot be carried.
    """
    out = [_HEAD, "<methodResponse><params><param>"]
    _write(value, out, "result", 0)
    out.append("</param></params></methodResponse>")
    return _document(out, "the result")


def encode_fault(code: int, message: str) -> bytes:
    """Return a methodResponse document that carries a fault.

    An error message must get through whatever it quotes, so here, and only here, characters that
    XML has no form for are replaced (by U+FFFD), and what is too long is cut.
    """
    message = _NOT_XML.sub("\ufffd", message[:FAULT_STRING_MAX])
    out = [_HEAD, "<methodResponse><fault>"]
    _write({"faultCode": code, "faultString": message}, out, "fault", 0)
    out.append("</fault></methodResponse>")
    return _document(out, "the fault")


def decode_call(body: bytes) -> tuple[str, list[Value]]:
    """Return method name and parameters of a methodCall document.

    Raises:
        RemoteProtocolError: it is not one.
    """
    if len(body) <= PLAIN_MAX and (plain := _PLAIN_CALL.fullmatch(body)):
        params = _PLAIN_PARAM.findall(plain[2])
        return plain[1].decode(), [_SCALARS[kind.decode()](text.decode()) for kind, text in params]
    kind, name, content = _parse(body)
    if kind != "methodCall" or not isinstance(content, list):
        raise RemoteProtocolError(f"expected a methodCall, got a {kind}")
    if not _METHOD_NAME.fullmatch(name):
        raise RemoteProtocolError(f"{name[:40]!r} is not a method name")
    return name, content


def decode_response(body: bytes) -> tuple[Value, tuple[int, str] | None]:
    """Return the result of a methodResponse document, or its fault.

    Returns:
        ``(result, None)`` or ``(None, (fault code, fault string))``; the string is cut to `FAULT_STRING_MAX`.

    Raises:
        RemoteProtocolError: it is no methodResponse.
    """
    if body == _NIL:  # as many answers are: to parse one takes as long as all else of a ping
        return None, None
    kind, name, content = _parse(body)
    if kind != "methodResponse":
        raise RemoteProtocolError(f"expected a methodResponse, got a {kind}")
    if name == "fault":
        fault = as_struct(content, "a fault")
        return None, (member(fault, "faultCode", int), member(fault, "faultString", str)[:FAULT_STRING_MAX])
    assert isinstance(content, list)
    if len(content) != 1:
        raise RemoteProtocolError(f"a methodResponse carries one value, this one has {len(content)}")
    return content[0], None


def _document(out: list[str], what: str) -> bytes:
    body = "".join(out).encode()
    # No text holds a bare "<"; one is that of the XML declaration.
    elements = body.count(b"<") - body.count(b"</") - 1
    if elements > ELEMENTS_MAX:
        raise LocalProtocolError(f"{what} takes {elements} XML elements, at most {ELEMENTS_MAX} are allowed")
    return body


def _write(value: Value, out: list[str], where: str, depth: int) -> None:
    if depth >= VALUE_DEPTH_MAX:
        raise LocalProtocolError(f"{where}: values are nested deeper than {VALUE_DEPTH_MAX}")
    if value is None:
        out.append("<value><nil/></value>")
    elif isinstance(value, bool):
        out.append(f"<value><boolean>{value:d}</boolean></value>")
    elif isinstance(value, int):
        if not LONG_MIN <= value <= LONG_MAX:
            raise LocalProtocolError(f"{where}: {value} does not fit 64 bits, send it as a string")
        kind = "int" if INT_MIN <= value <= INT_MAX else "i8"
        out.append(f"<value><{kind}>{value:d}</{kind}></value>")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise LocalProtocolError(f"{where}: XML-RPC has no {value}")
        out.append(f"<value><double>{value!r}</double></value>")
    elif isinstance(value, str):
        out.append(f"<value><string>{_escape(value, where)}</string></value>")
    elif isinstance(value, bytes):
        text = binascii.b2a_base64(value, newline=False).decode("ascii")
        out.append(f"<value><base64>{text}</base64></value>")
    elif isinstance(value, list):
        out.append("<value><array><data>")
        for number, item in enumerate(value):
            _write(item, out, f"{where}[{number}]", depth + 1)
        out.append("</data></array></value>")
    elif isinstance(value, dict):
        out.append("<value><struct>")
        for name, item in value.items():
            if not isinstance(name, str):
                raise LocalProtocolError(f"{where}: the name of a member must be a string, not {name!r}")
            out.append(f"<member><name>{_escape(name, where)}</name>")
            _write(item, out, f"{where}.{name}", depth + 1)
            out.append("</member>")
        out.append("</struct></value>")
    else:
        raise LocalProtocolError(f"{where}: XML-RPC cannot carry a {type(value).__name__}")


def _escape(text: str, where: str) -> str:
    illegal = _NOT_XML.search(text)
    if illegal is not None:
        raise LocalProtocolError(
            f"{where}: XML cannot carry the character U+{ord(illegal[0]):04X}, send the text as bytes"
        )
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], text)


def _parse(body: bytes) -> tuple[str, str, Value]:
    """Return (root element, method name or "fault" or "", content) of a document."""
    builder = _Builder()
    try:
        # UTF-8 whatever the declaration says: a peer must not choose our decoder.
        parser = DefusedXMLParser(target=builder, encoding="utf-8", forbid_dtd=True)
        # Without the wrappers that make trees: they double what an element costs.
        parser.parser.StartElementHandler, parser.parser.EndElementHandler = builder.start, builder.end
        # In pieces, so that a tag with megabytes of attributes is refused before it is one.
        for at in range(0, len(body), MARKUP_MAX):
            parser.feed(body[at : at + MARKUP_MAX])
            if at - parser.parser.CurrentByteIndex > MARKUP_MAX:
                raise RemoteProtocolError(f"a tag or comment of more than {MARKUP_MAX} bytes")
        parser.close()
    except (ParseError, ExpatError) as error:  # the latter for an undefined entity
        raise RemoteProtocolError(f"not well-formed XML: {error}") from None
    except DefusedXmlException as error:
        raise RemoteProtocolError(f"forbidden XML: {type(error).__name__}") from None
    assert builder.root is not None
    return builder.root


#: Element → the elements it may stand in ("" is the document).
_PARENTS = {
    "methodCall": {""},
    "methodResponse": {""},
    "methodName": {"methodCall"},
    "params": {"methodCall", "methodResponse"},
    "fault": {"methodResponse"},
    "param": {"params"},
    "value": {"param", "fault", "data", "member"},
    "array": {"value"},
    "data": {"array"},
    "struct": {"value"},
    "member": {"struct"},
    "name": {"member"},
}


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        raise RemoteProtocolError(f"not an integer: {text[:40]!r}")
    value = int(text)
    if not LONG_MIN <= value <= LONG_MAX:
        raise RemoteProtocolError(f"an integer of more than 64 bits: {value}")
    return value


def _boolean(text: str) -> bool:
    if text not in ("0", "1"):
        raise RemoteProtocolError(f"not a boolean: {text[:40]!r}")
    return text == "1"


def _double(text: str) -> float:
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", text) or len(text) > 800:
        raise RemoteProtocolError(f"not a double: {text[:40]!r}")
    value = float(text)
    if not math.isfinite(value):
        raise RemoteProtocolError(f"a double out of range: {text[:40]!r}")
    return value


#: Of a length that 4 divides. A group for each four would say the same, in 30 times the memory of the text.
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


def _base64(text: str) -> bytes:
    # Line breaks are allowed (RFC 2045), everything else that binascii would skip is not.
    packed = text.encode().translate(None, b" \t\r\n")
    if len(packed) % 4 or not _BASE64.fullmatch(packed):
        raise RemoteProtocolError("not base64")
    return binascii.a2b_base64(packed)


def _nil(text: str) -> None:
    if text:
        raise RemoteProtocolError("nil with content")


_SCALARS: dict[str, Callable[[str], Value]] = {
    "int": _integer,
    "i4": _integer,
    "i8": _integer,
    "boolean": _boolean,
    "double": _double,
    "string": lambda text: text,
    "base64": _base64,
    "nil": _nil,
}

#: Calls as `encode_call` writes them, with scalars of ASCII that needs no escape: most calls are. A match
#: takes a tenth of the time of an XML parser, a tenth of a ping. All others, and long ones, are parsed.
_PLAIN_VALUE = rb"<param><value><(%b)>([ !-%%'-;=?-~]*)</\1></value></param>" % "|".join(_SCALARS).encode()
_PLAIN_PARAM = re.compile(_PLAIN_VALUE)
_PLAIN_CALL = re.compile(
    rb"%b<methodCall><methodName>([A-Za-z0-9_.:/]{1,255})</methodName><params>((?:%b)*)</params></methodCall>"
    % (re.escape(_HEAD).encode(), _PLAIN_VALUE.replace(rb"\1", rb"\3"))
)
PLAIN_MAX = 1024

_LEAVES = frozenset({*_SCALARS, "methodName", "name", "value"})
#: Elements on the way from the document down to a value of the greatest depth: struct, member, value.
_OPEN_MAX = 3 * VALUE_DEPTH_MAX + 3


class _Element:
    __slots__ = ("children", "tag", "text")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.text: list[str] = []
        self.children: list[tuple[str, Value]] = []


class _Builder:
    """The target of the XML parser: checks the grammar and builds the values, without recursion."""

    def __init__(self) -> None:
        self._open = [_Element("")]
        self._elements = 0
        self.root: tuple[str, str, Value] | None = None

    def start(self, tag: str, attrs: object) -> None:
        parent = self._open[-1].tag
        allowed = parent == "value" if tag in _SCALARS else parent in _PARENTS.get(tag, ())
        if not allowed:
            raise RemoteProtocolError(f"<{tag[:40]}> must not stand in <{parent}>")
        if len(self._open) > _OPEN_MAX:
            raise RemoteProtocolError(f"values are nested deeper than {VALUE_DEPTH_MAX}")
        if attrs:
            raise RemoteProtocolError(f"<{tag}> must not have attributes")
        self._elements += 1
        if self._elements > ELEMENTS_MAX:
            raise RemoteProtocolError(f"more than {ELEMENTS_MAX} elements")
        self._open.append(_Element(tag))

    def data(self, text: str) -> None:
        element = self._open[-1]
        if element.tag in _LEAVES:
            element.text.append(text)
        elif not text.isspace():
            raise RemoteProtocolError(f"text must not stand in <{element.tag}>")

    def end(self, tag: str) -> None:
        element = self._open.pop()
        children = element.children
        value: Value
        if tag in _SCALARS:
            value = _SCALARS[tag]("".join(element.text))
        elif tag == "value":
            value = _value(element)
        elif tag in ("methodName", "name"):
            value = "".join(element.text)
        elif tag in ("params", "data"):
            value = [child for _, child in children]
        elif tag == "struct":
            value = _struct(children)
        elif tag == "member":
            _expect(element, ["name", "value"])
            value = [child for _, child in children]
        elif tag == "methodCall":
            _expect(element, ["methodName", "params"] if len(children) > 1 else ["methodName"])
            self.root = (tag, str(children[0][1]), children[1][1] if len(children) > 1 else [])
            return
        elif tag == "methodResponse":
            _expect(element, ["fault"] if children and children[0][0] == "fault" else ["params"])
            self.root = (tag, children[0][0], children[0][1])
            return
        else:  # param, fault, array: exactly one child
            _expect(element, ["data" if tag == "array" else "value"])
            value = children[0][1]
        self._open[-1].children.append((tag, value))

    def close(self) -> None:
        """Part of the parser's target interface; `root` holds the result."""


def _expect(element: _Element, tags: list[str]) -> None:
    found = [tag for tag, _ in element.children]
    if found != tags:
        raise RemoteProtocolError(f"<{element.tag}> must hold {tags}, not {found[:4]}")


def _value(element: _Element) -> Value:
    text = "".join(element.text)
    if not element.children:
        return text
    if len(element.children) > 1 or (text and not text.isspace()):
        raise RemoteProtocolError("<value> must hold one element or text")
    return element.children[0][1]


def _struct(members: list[tuple[str, Value]]) -> Struct:
    struct: Struct = {}
    for _, pair in members:
        assert isinstance(pair, list)
        name, value = pair
        assert isinstance(name, str)
        if name in struct:
            raise RemoteProtocolError(f"member '{name[:40]}' stands twice in a struct")
        struct[name] = value
    return struct


#: The answer of a method that has nothing to say.
_NIL = encode_result(None)
