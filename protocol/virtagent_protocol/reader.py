"""Bytes → messages: the one reader of the wire (SPEC.md sections 3 and 6).

The rules:

1. Any bytes whatsoever give messages or counted drops: never another exception, and never more
   memory than one header block, one body and one chunk.
2. Whatever is illegal is dropped, and the reader hunts for the next 0xFF.
3. 0xFF never occurs in a header block. If it does, the message before it was cut short, and a
   new one starts there.
4. A length over the limit is refused before a byte of the body is held.
5. Bodies are not scanned while they arrive; a body is whole only when 0xFF stands behind it. If
   it does not, the lengths lied (a sender died in the middle of its message): the reader then
   hunts from the *first byte of that body* on, so what the next sender wrote is not lost with it.
6. No timers here. Whoever decides that an unfinished message will never be finished calls
   `abandon`.
7. A large body need not pass through the buffer that is searched: it is put where it will stay (`space`).
8. A body that was refused may be searched for a second's worth of fragments. Who has other things
   to do meanwhile takes the events one by one (`push`, `give_up`, `next_event`) rather than all at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from .buffers import BufferPool
from .limits import BODY_MAX, CREDIT_MAX, HEADER_MAX, KIB, LINE_MAX, STREAM_BODY_MAX
from .messages import (
    MAGIC,
    REASON,
    SESSION,
    STREAM_ID_MAX,
    TAG,
    Cancel,
    Message,
    Request,
    Response,
    StreamCredit,
    StreamData,
    StreamEnd,
    checksum,
)


class DropCause(Enum):
    """Why bytes were dropped. The values are the names of the counters in `va_status`."""

    #: Bytes before the first 0xFF, such as the end of a message from before we listened.
    GARBAGE = "garbage"
    #: A header block was cut short by the 0xFF of the next message.
    CUT_SHORT = "cut-short"
    #: The start-line is none of the six of SPEC.md section 3.
    START_LINE = "start-line"
    #: A header is malformed, doubled, or missing.
    HEADER = "header"
    #: A line or a header block is longer than allowed.
    HEADER_TOO_LONG = "header-too-long"
    #: The length of the body is more than allowed.
    BODY_TOO_LONG = "body-too-long"
    #: The checksum is wrong, or missing where the session has agreed on it.
    CRC = "crc"
    #: The byte behind the body is not 0xFF.
    UNTERMINATED = "unterminated"
    #: The rest of the message never came.
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class Drop:
    """Something on the wire was dropped; the reader has resynchronised or is hunting."""

    cause: DropCause


Event = Message | Drop

_Builder = Callable[[dict[bytes, bytes], int, Any], Message]


@dataclass(frozen=True)
class _Head:
    """A parsed header block whose body is awaited; *checked* are the lines that its checksum covers."""

    build: _Builder
    checked: list[bytes]
    stream: int
    headers: dict[bytes, bytes]
    length: int


class _Illegal(Exception):
    def __init__(self, cause: DropCause) -> None:
        self.cause = cause


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("ascii")


def _known(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers[name].decode("ascii")


_TAG = b"x-virtagent-client-tag"
_SESSION = b"x-virtagent-session"
_CREDIT = b"x-virtagent-credit"
_REASON = b"x-virtagent-reason"
_CRC = b"x-virtagent-crc"
_LENGTH = b"content-length"
_TYPE = b"content-type"

#: Headers with a meaning, and what their values must look like. All others are ignored.
_SYNTAX = {
    _TAG: TAG,
    _SESSION: SESSION,
    _CREDIT: re.compile(rb"[1-9][0-9]{0,9}"),
    _REASON: REASON,
    _CRC: re.compile(rb"[0-9a-f]{8}"),
    # Strict decimal: no sign, no space, no underscore, all of which int() would take.
    _LENGTH: re.compile(rb"0|[1-9][0-9]{0,9}"),
    _TYPE: re.compile(rb"[!-~][ -~]*"),
}


@dataclass(frozen=True)
class _Form:
    """What a start-line promises: the headers it needs, the type and size of its body, what it becomes."""

    build: _Builder
    required: tuple[bytes, ...]
    content_type: bytes | None = None
    body_max: int = 0


_RPC_FORMS = {
    b"POST /RPC2 HTTP/1.1": _Form(
        lambda h, _, body: Request(_known(h, _TAG), body, _text(h, _SESSION)),
        (_TAG, _LENGTH),
        b"text/xml",
        BODY_MAX,
    ),
    b"HTTP/1.1 200 OK": _Form(
        lambda h, _, body: Response(_known(h, _TAG), body, _text(h, _SESSION)),
        (_TAG, _LENGTH),
        b"text/xml",
        BODY_MAX,
    ),
    b"DELETE /RPC2 HTTP/1.1": _Form(lambda h, _, body: Cancel(_known(h, _TAG), _text(h, _SESSION)), (_TAG,)),
}
_STREAM_FORMS = {
    b"PUT": _Form(
        lambda h, n, body: StreamData(n, body, _text(h, _SESSION)),
        (_LENGTH,),
        b"application/octet-stream",
        STREAM_BODY_MAX,
    ),
    b"POST": _Form(lambda h, n, body: StreamCredit(n, int(h[_CREDIT]), _text(h, _SESSION)), (_CREDIT,)),
    b"DELETE": _Form(lambda h, n, body: StreamEnd(n, _known(h, _REASON), _text(h, _SESSION)), (_REASON,)),
}
#: Credit alone may be for 0, the link.
_STREAM_LINE = re.compile(rb"(PUT|POST|DELETE) /streams/([1-9][0-9]{0,9}|(?<=POST /streams/)0) HTTP/1\.1")
#: A header line of RFC 9112 section 5, without obsolete folding; the value is printable ASCII and tab.
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[!-~](?:[ -~\t]*[!-~])?)?)[ \t]*")


#: The head of a request or response as `messages.encode` writes it, with the end of the message before it.
_PLAIN_HEAD = re.compile(
    rb"\xff{1,2}(?:(POST /RPC2 HTTP/1\.1)|HTTP/1\.1 200 OK)\r\nContent-Type: text/xml\r\n"
    rb"X-Virtagent-Client-Tag: (%b)\r\nX-Virtagent-Session: (%b)\r\nContent-Length: (%b)\r\n\r\n"
    % (TAG.pattern, SESSION.pattern, _SYNTAX[_LENGTH].pattern)
)
#: Bytes of a body up to which it is cut out of the buffer in the simplest way, which copies it twice.
_SHORT = 4096
#: Bytes of stream data from which on they have a place of their own, rather than be copied to it.
_LARGE = 16 * KIB
#: Bytes that are taken in at a time while no large body is awaited.
_SPACE = 8 * KIB
#: Bytes behind a large body that are taken in with it: the head of the next message, most likely of another.
_AHEAD = 256
#: Places of large bodies that are used again: those in a stream's window, one being filled, and some
#: being written.
_PLACES = 8


class MessageReader:
    """Turns the bytes of one direction of a transport into events.

    Feed it in pieces of any size; the events do not depend on where the pieces end.

    Attributes:
        crc_required: whether messages of a session must carry a checksum. Where there is one, it is checked.
    """

    def __init__(self) -> None:
        self.crc_required = False
        self._buffer = bytearray()
        #: Index of the first byte not yet dealt with: of a header block, or, with a head, of its body.
        self._at = 0
        self._head: _Head | None = None
        self._hunting = True
        self._given_up = False
        #: Whether all events of the bytes so far were taken.
        self._drained = True
        #: Whether the bytes skipped while hunting belong to a drop that was already reported.
        self._reported = False
        #: Index behind the body of wrong checksum that is being searched.
        self._searched_to = 0
        self._space = bytearray(_SPACE)
        self._places = BufferPool(_PLACES)
        #: Where a large body that is awaited, with the byte behind it, has its place; how long it is, and how
        #: much of it has come.
        self._place: bytearray | None = None
        self._needed = self._placed = 0

    @property
    def incomplete(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._head is not None or (not self._hunting and len(self._buffer) > self._at)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take the next bytes and return what they complete, in order."""
        self.push(data)
        return list(self.events())

    def abandon(self) -> list[Event]:
        """Give up the unfinished message, if there is one, and hunt in what is held of it.

        Returns:
            An ABANDONED drop and whatever messages its bytes turned out to hide; empty if nothing was
            unfinished.
        """
        self.give_up()
        return list(self.events())

    def push(self, data: bytes | bytearray | memoryview) -> None:
        """As `feed`, but leave the events to `next_event`."""
        self._drained = False
        if self._place is not None:
            count = min(len(data), self._needed - self._placed)
            self._place[self._placed : self._placed + count] = memoryview(data)[:count]
            self._placed += count
            data = memoryview(data)[count:]
        self._buffer += data

    def space(self) -> memoryview:
        """Return where the next bytes may be put; `filled` then tells how many are there.

        It is to be released before the events are taken.
        """
        return memoryview(self._space) if self._place is None else memoryview(self._place)[self._placed :]

    def filled(self, space: memoryview, count: int) -> None:
        """As `push`, of the first *count* bytes of *space*."""
        if self._place is not None and space.obj is self._place:
            self._placed += count
            self._drained = False
            if self._placed > self._needed:
                self._buffer += memoryview(self._place)[self._needed : self._placed]
                self._placed = self._needed
        else:
            # What was awaited when the space was asked for may have been given up since.
            self.push(space[:count])

    def give_up(self) -> None:
        """As `abandon`, but leave events to `next_event`; nothing if there are bytes not looked at yet."""
        self._given_up = self._drained and self.incomplete

    def events(self) -> Iterator[Event]:
        """Yield what the bytes so far complete, in order. It may be left and called again at any time."""
        while (event := self.next_event()) is not None:
            yield event

    def next_event(self) -> Event | None:
        """Return the next of what the bytes so far complete, in order; None: there is no more."""
        try:
            if (event := self._next()) is not None:
                return event
        except _Illegal as illegal:
            return self._hunt(illegal.cause)
        del self._buffer[: self._at]
        self._searched_to = max(0, self._searched_to - self._at)
        self._at = 0
        self._drained = True
        return None

    def _hunt(self, cause: DropCause) -> Drop:
        if self._place is not None:
            self._buffer[self._at : self._at] = memoryview(self._place)[: self._placed]
            self._place = None
        self._head = None
        self._hunting = self._reported = True
        return Drop(cause)

    def _next(self) -> Event | None:
        """Return the next event, or None if it takes more bytes; raise _Illegal with _at where to hunt."""
        if self._given_up:
            self._given_up = False
            raise _Illegal(DropCause.ABANDONED)
        if self._hunting:
            found = self._buffer.find(MAGIC, self._at)
            skipped = (len(self._buffer) if found < 0 else found) - self._at
            self._at += skipped
            if skipped and not self._reported:
                self._reported = True
                return Drop(DropCause.GARBAGE)
            if found < 0:
                return None
            self._hunting = False
        if self._head is None:
            if self._at == len(self._buffer):
                return None
            if not self.crc_required and (message := self._read_plain()) is not None:
                return message
            self._head = self._read_head()
            if self._head is None:
                return None
        return self._read_body(self._head)

    def _read_plain(self) -> Message | None:
        """Read a short request or response that is all there and just as `messages.encode` writes it, which
        nearly all are, in a tenth of the time that the other way takes; None: it is another."""
        match = _PLAIN_HEAD.match(self._buffer, self._at)
        if match is None:
            return None
        start, length = match.end(), int(match[4])
        end = start + length
        if length > _SHORT or len(self._buffer) <= end or self._buffer[end] != MAGIC:
            return None
        self._at = end + 1
        build = Request if match[1] else Response
        return build(match[2].decode(), bytes(self._buffer[start:end]), match[3].decode())

    def _read_head(self) -> _Head | None:
        buffer = self._buffer
        # Any number of 0xFF may stand between messages: one ends the last, one begins the next.
        while self._at < len(buffer) and buffer[self._at] == MAGIC:
            self._at += 1
        start = self._at
        # The limit also bounds the search: a peer that trickles bytes costs no more than one that does not.
        limit = start + HEADER_MAX
        # 0xFF is looked for first: it bounds the other search where a peer sends hardly anything else.
        cut = buffer.find(MAGIC, start, limit)
        end = buffer.find(b"\r\n\r\n", start, cut if cut >= 0 else limit)
        if end >= 0:
            cut = -1  # it stands in the body
        elif start <= cut <= start + LINE_MAX:
            self._at = cut  # the quick way for what a garbled stream is full of: no line can be too long
            raise _Illegal(DropCause.CUT_SHORT)
        stop = cut if cut >= 0 else end if end >= 0 else min(len(buffer), limit)
        block = bytes(memoryview(buffer)[start:stop])
        if len(block) > LINE_MAX:
            lines = block.split(b"\r\n")
            # The last line may yet lack the LF of its CRLF. Length comes before all else, so that what a
            # message is dropped for does not depend on where the pieces end.
            if max(map(len, lines)) > LINE_MAX and (end >= 0 or lines[-1][LINE_MAX:] != b"\r"):
                raise _Illegal(DropCause.HEADER_TOO_LONG)
        if cut >= 0:
            self._at = cut
            raise _Illegal(DropCause.CUT_SHORT)
        if end < 0:
            if stop == limit:
                raise _Illegal(DropCause.HEADER_TOO_LONG)
            return None
        self._at = end + 4
        return _parse_head(block)

    def _read_body(self, head: _Head) -> Message | None:
        if self._place is not None:
            return self._read_place(head, self._place)
        end = self._at + head.length
        if len(self._buffer) <= end:
            self._await_large(head)
            return None
        if self._buffer[end] != MAGIC:
            raise _Illegal(DropCause.UNTERMINATED)
        body = bytes(memoryview(self._buffer)[self._at : end])
        self._check(head, body)
        self._at = end
        self._head = None
        return head.build(head.headers, head.stream, body)

    def _await_large(self, head: _Head) -> None:
        """Give the body a place of its own if it is worth that."""
        if not head.stream or head.length < _LARGE or self.crc_required or _CRC in head.headers:
            return
        if self._searched_to > self._at:
            return
        self._placed = len(self._buffer) - self._at
        self._needed = head.length + 1
        self._place = self._places.take(self._needed + _AHEAD)
        self._place[: self._placed] = memoryview(self._buffer)[self._at :]
        del self._buffer[self._at :]

    def _read_place(self, head: _Head, place: bytearray) -> Message | None:
        if self._placed < self._needed:
            return None
        if place[head.length] != MAGIC:
            raise _Illegal(DropCause.UNTERMINATED)
        del place[head.length :]
        self._place = self._head = None
        return head.build(head.headers, head.stream, place)

    def _check(self, head: _Head, body: bytes) -> None:
        claimed = head.headers.get(_CRC)
        if claimed is None:
            # Hello and its answer may come from an end that does not know of the agreement yet.
            if self.crc_required and _SESSION in head.headers:
                raise _Illegal(DropCause.CRC)
        elif claimed != checksum(head.checked, body):
            # What is wrong may be the length: hunt from the body on. Not from a body within such a body, or
            # every byte would be summed up as often as somebody cares to nest bodies.
            end = self._at + len(body)
            if self._at < self._searched_to:
                self._at = end
            else:
                self._searched_to = end
            raise _Illegal(DropCause.CRC)


# All full chunks of a stream have the same head, and most of them follow one another.
@lru_cache(maxsize=16)
def _parse_head(block: bytes) -> _Head:
    lines = block.split(b"\r\n")
    stream = 0
    form = _RPC_FORMS.get(lines[0])
    if form is None:
        match = _STREAM_LINE.fullmatch(lines[0])
        if match is None:
            raise _Illegal(DropCause.START_LINE)
        form = _STREAM_FORMS[match[1]]
        stream = int(match[2])
    headers: dict[bytes, bytes] = {}
    checked = lines[:1]
    for line in lines[1:]:
        match = _HEADER_LINE.fullmatch(line)
        if match is None:
            raise _Illegal(DropCause.HEADER)
        name = match[1].lower()
        if name != _CRC:
            checked.append(line)
        syntax = _SYNTAX.get(name)
        if syntax is None:
            continue
        if name in headers or not syntax.fullmatch(match[2]):
            raise _Illegal(DropCause.HEADER)
        headers[name] = match[2]
    if not all(name in headers for name in form.required):
        raise _Illegal(DropCause.HEADER)
    if form.content_type is not None and headers.get(_TYPE, b"").lower() != form.content_type:
        raise _Illegal(DropCause.HEADER)
    if stream > STREAM_ID_MAX or int(headers.get(_CREDIT, b"1")) > CREDIT_MAX:
        raise _Illegal(DropCause.HEADER)
    length = int(headers.get(_LENGTH, b"0"))
    if length > form.body_max:
        raise _Illegal(DropCause.BODY_TOO_LONG)
    return _Head(form.build, checked, stream, headers, length)
