"""Split a byte stream into JSON values, the way QEMU's own monitor does. Sans-IO.

The rules:

1. Values may follow each other with white space, newlines or nothing between them: qemu.qmp sends no
   newline, socat and people send one. So a value ends where its brackets close, not where a line does.
2. What QEMU's parser refuses is refused: duplicate keys, NaN, numbers past a double, invalid UTF-8.
3. What QEMU accepts beyond JSON, single-quoted strings, is accepted here too: people type them.
4. Bad input costs one `ParseError` and the reader goes on. A value that is whole but wrong is dropped
   by itself; after one that is too long, too deep, has too many parts or a string without an end, the rest
   of the line is skipped. The byte 0xFF, which no JSON text contains, drops what is unfinished, as in QEMU.
5. Memory is bounded, and where the input was cut into pieces makes no difference, errors included.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

#: Longest value, in bytes. QEMU's own limit is 64 MiB, for images in ringbuf-write and the like; the
#: commands that people and tools send are a few KiB, and each client of a bridge may cost ten times this.
VALUE_MAX = 1024 * 1024

#: Brackets, commas and strings of a value; QEMU's own limit is 2 Mi tokens. A list `[{},{},…` takes twenty
#: times its length in memory, and each of these 1 µs, in which nobody else is served.
MARKS_MAX = 64 * 1024

#: Deepest nesting. QEMU's own limit is 1024, which is past what Python's recursive parser can take.
DEPTH_MAX = 256


@dataclass(frozen=True)
class JsonValue:
    """One value, whole and valid."""

    value: object


@dataclass(frozen=True)
class ParseError:
    """Something that was not a value; *desc* is for the ``desc`` of a QMP error."""

    desc: str


JsonEvent = JsonValue | ParseError

# The bytes that end or change the meaning of what follows; all others are skipped at the speed of `re`.
_IN_CONTAINER = re.compile(rb"[{}\[\]\"',\xff]")
_BEGIN = re.compile(rb"[{}\[\]\"'\xff]")
_IN_STRING = {
    ord('"'): re.compile(rb"[\"\\\x00-\x1f\xff]"),
    ord("'"): re.compile(rb"['\\\x00-\x1f\xff]"),
}
# A top-level word (`garbage`, `42`) ends at white space or where something else begins.
_END_OF_WORD = re.compile(rb"[\s{}\[\]\"'\xff]")
_END_OF_LINE = re.compile(rb"[\n\xff]")
_BLANK = re.compile(rb"\s+")

_QUOTES = b"\"'"
_BACKSLASH = ord("\\")
_COMMA = ord(",")
_RESET = 0xFF


class JsonSplitter:
    """Takes bytes in any pieces, gives the values in them; see the module's rules.

    Args:
        value_max: longest value in bytes; what is longer costs one `ParseError`.
    """

    def __init__(self, value_max: int = VALUE_MAX) -> None:
        self._value_max = value_max
        self._buffer = bytearray()
        self._skip_line = False
        # How far the value at the start of the buffer has been looked at, and what was met there.
        self._scanned = 0
        self._depth = 0
        self._marks = 0
        self._quote = 0
        self._escaped = False

    def feed(self, data: bytes) -> Iterator[JsonEvent]:
        """Yield what *data* completes. The iterator must be run to its end before the next call.

        Never raises; once it has ended, at most ``value_max`` bytes are kept.
        """
        self._buffer += data
        while (event := self._next()) is not None:
            yield event

    def _next(self) -> JsonEvent | None:
        """Return the next event, or None when more bytes are needed."""
        if self._skip_line:
            end = _END_OF_LINE.search(self._buffer)
            if end is None:
                self._buffer.clear()
                return None
            self._drop(end.start())
        if self._scanned == 0 and (blank := _BLANK.match(self._buffer)):
            self._drop(blank.end())
        while self._scanned < min(len(self._buffer), self._value_max):
            event = self._scan()
            if event is not None:
                return event
        if len(self._buffer) > self._value_max:
            return self._give_up("JSON token size limit exceeded", self._value_max)
        return None

    def _scan(self) -> JsonEvent | None:
        """Advance past the next byte that matters. What that completes, if anything, is returned."""
        if self._quote:
            return self._scan_string()
        at_start = self._scanned == 0 and _BEGIN.match(self._buffer)
        if self._depth == 0 and not at_start:
            return self._scan_word()
        found = self._find(_IN_CONTAINER)
        if found is None:
            return None
        byte = self._buffer[found]
        if byte == _RESET:
            return self._reset()
        self._marks += 1
        if self._marks > MARKS_MAX:
            return self._give_up("JSON token count limit exceeded", self._scanned)
        if byte in _QUOTES:
            self._quote = byte
            return None
        if byte == _COMMA:
            return None
        self._depth += 1 if byte in b"{[" else -1
        if self._depth > DEPTH_MAX:
            return self._give_up("JSON nesting depth limit exceeded", self._scanned)
        return self._take() if self._depth <= 0 else None

    def _scan_string(self) -> JsonEvent | None:
        if self._escaped:
            self._escaped = False
            if self._buffer[self._scanned] in b"\"'\\":
                self._scanned += 1
                return None
        found = self._find(_IN_STRING[self._quote])
        if found is None:
            return None
        byte = self._buffer[found]
        if byte == _RESET:
            return self._reset()
        if byte == _BACKSLASH:
            self._escaped = True
            return None
        if byte == self._quote:
            self._quote = 0
            return self._take() if self._depth == 0 else None
        # A control character never stands in a string, so its closing quote was forgotten. Giving up
        # here, not at the limit, is what lets a person's next line be heard.
        return self._give_up("JSON parse error, unterminated string", found)

    def _scan_word(self) -> JsonEvent | None:
        found = self._find(_END_OF_WORD)
        if found is None:
            return None
        self._scanned = found
        return self._take()

    def _find(self, pattern: re.Pattern[bytes]) -> int | None:
        """Return the index of the next match, and go past it; without one, go to the end."""
        # Nothing past the limit is looked at, so that how the input was cut cannot change the outcome.
        end = min(len(self._buffer), self._value_max)
        match = pattern.search(self._buffer, self._scanned, end)
        self._scanned = match.end() if match else end
        return match.start() if match else None

    def _take(self) -> JsonEvent:
        raw = bytes(self._buffer[: self._scanned])
        self._drop(self._scanned)
        return _parse(raw)

    def _reset(self) -> ParseError:
        self._drop(self._scanned)
        return ParseError("JSON parse error, stray '\ufffd'")

    def _give_up(self, desc: str, length: int) -> ParseError:
        """Drop *length* bytes and, as they come, the rest of their line."""
        self._drop(length)
        self._skip_line = True
        return ParseError(desc)

    def _drop(self, length: int) -> None:
        del self._buffer[:length]
        self._scanned = self._depth = self._marks = self._quote = 0
        self._escaped = self._skip_line = False


_STRING = re.compile(r""""([^"\\]*(?:\\.[^"\\]*)*)"|'([^'\\]*(?:\\.[^'\\]*)*)'""", re.DOTALL)
_QUOTE_OR_ESCAPE = re.compile(r"\\.|\"", re.DOTALL)

#: Digits of the longest integer. A double ends at 309; Python's own limit (3.11) is 4300, and 3.10 has none
#: but takes quadratic time.
_DIGITS_MAX = 309


def _parse(raw: bytes) -> JsonEvent:
    try:
        text = raw.decode()
        if "'" in text:
            text = _STRING.sub(_double_quoted, text)
        value = _DECODER.decode(text)
    except UnicodeDecodeError:
        return ParseError("JSON parse error, invalid UTF-8 sequence in string")
    except json.JSONDecodeError as error:
        return ParseError(
            f"JSON parse error, {error.msg[:1].lower()}{error.msg[1:]} at character {error.pos}"
        )
    except ValueError as error:
        return ParseError(f"JSON parse error, {error}")
    return JsonValue(value)


def _double_quoted(string: re.Match[str]) -> str:
    body = string[1] if string[1] is not None else string[2]
    return '"' + _QUOTE_OR_ESCAPE.sub(lambda m: {"\\'": "'", '"': '\\"'}.get(m[0], m[0]), body) + '"'


def _object(members: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(members)
    if len(result) != len(members):
        _refuse("duplicate key")
    return result


def _float(text: str) -> float:
    # QEMU takes 1e999 for infinity, and then writes `inf`, which is no JSON.
    value = float(text)
    return value if math.isfinite(value) else _refuse(f"number {text[:20]} is out of range")


def _int(text: str) -> int:
    return int(text) if len(text) <= _DIGITS_MAX else _refuse(f"number {text[:20]}... is out of range")


def _constant(text: str) -> object:
    return _refuse(f"invalid keyword '{text}'")


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant
)
