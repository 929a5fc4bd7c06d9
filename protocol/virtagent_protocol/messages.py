"""The messages of the wire, and their bytes (SPEC.md section 3).

One form for everything, HTTP/1.1 syntax and no HTTP connection semantics::

    0xFF  start-line CRLF  *(header CRLF)  CRLF  body  0xFF

`encode` is the only place that writes it; `reader.MessageReader` the only one that reads it.

On a channel that may change bytes, such as a serial line, the last header is a checksum of all else.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

from .errors import LocalProtocolError
from .limits import BODY_MAX, CREDIT_MAX, STREAM_BODY_MAX, TAG_MAX

#: The byte before and behind every message.
MAGIC = 0xFF
_MAGIC = bytes([MAGIC])

#: A client tag: printable ASCII without space, so that it survives logs and header folding.
TAG = re.compile(rb"[!-~]{1,%d}" % TAG_MAX)
#: A session: the host's epoch, then the guest's.
SESSION = re.compile(rb"[0-9a-f]{16}-[0-9a-f]{16}")
#: The reason of a stream's end: a token of RFC 9110.
REASON = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
#: Stream ids are positive and fit a signed 32-bit integer, as every XML-RPC library can carry them.
STREAM_ID_MAX = 2**31 - 1
#: In a credit message: not a stream, but the link itself.
LINK_CREDIT = 0
#: Bytes of stream data from which on `encode_parts` does not copy them.
JOINED_MAX = 4096


@dataclass(frozen=True)
class Request:
    """A call: the body is an XML-RPC methodCall."""

    tag: str
    body: bytes
    session: str | None = None


@dataclass(frozen=True)
class Response:
    """The answer to the request of the same tag, a fault included: the body is an XML-RPC methodResponse."""

    tag: str
    body: bytes
    session: str | None = None


@dataclass(frozen=True)
class Cancel:
    """The sender no longer wants the answer to its request of this tag."""

    tag: str
    session: str | None = None


@dataclass(frozen=True)
class StreamData:
    """The next bytes of a stream."""

    stream: int
    data: bytes | bytearray | memoryview
    session: str | None = None


@dataclass(frozen=True)
class StreamCredit:
    """The receiver of a stream, or of all (`LINK_CREDIT`), grants its sender so many bytes more."""

    stream: int
    credit: int
    session: str | None = None


@dataclass(frozen=True)
class StreamEnd:
    """The sender ends its half of a stream (``eof``), both halves (``closed``), or resets it (all else)."""

    stream: int
    reason: str
    session: str | None = None


Message = Request | Response | Cancel | StreamData | StreamCredit | StreamEnd


def checksum(lines: list[bytes], body: bytes | bytearray | memoryview) -> bytes:
    """Return the value of X-Virtagent-CRC: CRC-32 (as zlib has it), 8 lower-case hexadecimal digits.

    Args:
        lines: start-line and headers but X-Virtagent-CRC, in their order, without CRLF.
        body: the body.
    """
    return b"%08x" % zlib.crc32(body, zlib.crc32(b"".join(line + b"\r\n" for line in lines)))


def encode(message: Message, *, crc: bool = False) -> bytes:
    """Return the bytes of a message, with the 0xFF before and behind it.

    Args:
        message: what to send.
        crc: whether to add the checksum.

    Raises:
        LocalProtocolError: a field is not what SPEC.md section 3 allows; nothing may be sent.
    """
    return b"".join(encode_parts(message, crc=crc))


def encode_parts(message: Message, *, crc: bool = False) -> tuple[bytes | bytearray | memoryview, ...]:
    """As `encode`, in parts, so that a large body need not be copied: it is one of them, as it is.

    The body of stream data must not be changed until it has been written.
    """
    if isinstance(message, StreamData) and len(message.data) >= JOINED_MAX and not crc:
        _check_length(message.data, STREAM_BODY_MAX)
        return _stream_head(message.stream, len(message.data), message.session), message.data, _MAGIC
    return (_encode(message, crc=crc),)


def encode_answer(request: Request, body: bytes, *, crc: bool = False) -> bytes:
    """As `encode`, of the response to a request that was read: its tag and session were looked at then."""
    if request.session is None or crc:
        return encode(Response(request.tag, body, request.session), crc=crc)
    _check_length(body, BODY_MAX)
    return _PLAIN % (_ANSWER, request.tag.encode(), request.session.encode(), len(body), body)


@lru_cache(maxsize=16)
def _stream_head(stream: int, length: int, session: str | None) -> bytes:
    # All full chunks of a stream have the same head, and most of them follow one another.
    head = [_stream(b"PUT", stream), b"Content-Type: application/octet-stream"]
    if session is not None:
        head.append(b"X-Virtagent-Session: " + _session(session))
    return _MAGIC + b"\r\n".join(head) + b"\r\nContent-Length: %d\r\n\r\n" % length


def _encode(message: Message, *, crc: bool) -> bytes:
    if isinstance(message, (Request, Response)) and message.session is not None and not crc:
        return _encode_plain(message, message.session)
    head: list[bytes]
    body: bytes | bytearray | memoryview = b""
    if isinstance(message, Request):
        head, body = [_CALL, b"Content-Type: text/xml", *_tag(message.tag)], message.body
        _check_length(body, BODY_MAX)
    elif isinstance(message, Response):
        head, body = [_ANSWER, b"Content-Type: text/xml", *_tag(message.tag)], message.body
        _check_length(body, BODY_MAX)
    elif isinstance(message, Cancel):
        head = [b"DELETE /RPC2 HTTP/1.1", *_tag(message.tag)]
    elif isinstance(message, StreamData):
        head = [_stream(b"PUT", message.stream), b"Content-Type: application/octet-stream"]
        body = message.data
        _check_length(body, STREAM_BODY_MAX)
    elif isinstance(message, StreamCredit):
        if not 1 <= message.credit <= CREDIT_MAX:
            raise LocalProtocolError(f"credit must be 1 to {CREDIT_MAX}, it is {message.credit}")
        head = [_stream(b"POST", message.stream, LINK_CREDIT), b"X-Virtagent-Credit: %d" % message.credit]
    else:
        reason = _ascii(message.reason)
        if not REASON.fullmatch(reason):
            raise LocalProtocolError(f"the reason of a stream's end must be a token, not {message.reason!r}")
        head = [_stream(b"DELETE", message.stream), b"X-Virtagent-Reason: " + reason]
    if message.session is not None:
        head.append(b"X-Virtagent-Session: " + _session(message.session))
    head.append(b"Content-Length: %d" % len(body))
    if crc:
        head.append(b"X-Virtagent-CRC: " + checksum(head, body))
    return b"".join((_MAGIC, b"\r\n".join(head), b"\r\n\r\n", body, _MAGIC))


_CALL, _ANSWER = b"POST /RPC2 HTTP/1.1", b"HTTP/1.1 200 OK"
_PLAIN = (
    b"\xff%b\r\nContent-Type: text/xml\r\nX-Virtagent-Client-Tag: %b\r\nX-Virtagent-Session: %b\r\n"
    b"Content-Length: %d\r\n\r\n%b\xff"
)


def _encode_plain(message: Request | Response, session: str) -> bytes:
    """The same in one go, for what nearly every message is: a quarter of the time."""
    start = _CALL if isinstance(message, Request) else _ANSWER
    body = message.body
    _check_length(body, BODY_MAX)
    return _PLAIN % (start, _checked_tag(message.tag), _session(session), len(body), body)


def _tag(tag: str) -> list[bytes]:
    return [b"X-Virtagent-Client-Tag: " + _checked_tag(tag)]


def _checked_tag(tag: str) -> bytes:
    encoded = _ascii(tag)
    if not TAG.fullmatch(encoded):
        raise LocalProtocolError(f"a client tag is 1 to {TAG_MAX} printable ASCII characters, not {tag!r}")
    return encoded


@lru_cache(maxsize=8)
def _session(session: str) -> bytes:
    encoded = _ascii(session)
    if not SESSION.fullmatch(encoded):
        raise LocalProtocolError(f"a session is two epochs of 16 hex digits, not {session!r}")
    return encoded


def _stream(method: bytes, stream: int, least: int = 1) -> bytes:
    if not least <= stream <= STREAM_ID_MAX:
        raise LocalProtocolError(f"a stream id must be {least} to {STREAM_ID_MAX}, it is {stream}")
    return b"%b /streams/%d HTTP/1.1" % (method, stream)


def _ascii(text: str) -> bytes:
    # What is not ASCII becomes empty, which no pattern here allows: it must end as LocalProtocolError,
    # not as UnicodeEncodeError.
    return text.encode("ascii") if text.isascii() else b""


def _check_length(body: bytes | bytearray | memoryview, limit: int) -> None:
    if len(body) > limit:
        raise LocalProtocolError(f"the message body has {len(body)} bytes, at most {limit} are allowed")
