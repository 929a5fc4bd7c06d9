"""A byte stream to the JSON values in it, as QEMU's streamer does it. Sans-IO.

The rules:

1. A value is whole when its brackets are: when as many are closed as were opened, of either kind, or one
   too many. So values need nothing between them.
2. Wrong input costs one `JsonProblem`, and the stream goes on behind it; whatever was unfinished is dropped.
3. Memory is bounded: bytes, tokens and nesting of the unfinished value. How the input was cut makes no
   difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from .lexer import Lexer, Token, TokenType
from .parser import JsonError, parse

MIB = 1024 * 1024
#: Bytes of the longest value. qemu-ga takes 64 MiB, with which guest-file-write sends 48 MB at once; it and
#: what is made of it would be held several times. Clients send some 64 KiB.
VALUE_MAX = 16 * MIB
#: Tokens of a value; qemu-ga takes 2 Mi. Each costs 200 bytes and 2 µs, in which nobody else is served.
TOKENS_MAX = 64 * 1024
#: Deepest nesting; qemu-ga takes 1024, which is past what Python's recursive encoder takes.
NESTING_MAX = 256
#: Bytes of a wrong token that are shown in the error.
_SHOWN_MAX = 1000


@dataclass(frozen=True)
class JsonValue:
    """One value, whole and valid."""

    value: object


@dataclass(frozen=True)
class JsonProblem:
    """Something that was not a value; *desc* goes into ``desc`` of an answer."""

    desc: str


JsonEvent = JsonValue | JsonProblem

_NESTS = {b"{": (1, 0), b"}": (-1, 0), b"[": (0, 1), b"]": (0, -1)}


class JsonStream:
    """Takes bytes in any pieces, gives the values in them; see the module's rules.

    Args:
        value_max: longest value in bytes.
    """

    def __init__(self, value_max: int = VALUE_MAX) -> None:
        self._value_max = value_max
        self._lexer = Lexer(value_max)
        self._tokens: deque[Token] = deque()
        self._size = 0
        self._braces = 0
        self._brackets = 0

    def feed(self, data: bytes) -> Iterator[JsonEvent]:
        """Yield what *data* completes; never raises. To be run to its end before the next call."""
        for token in self._lexer.feed(data):
            event = self._take(token)
            if event is not None:
                yield event

    def _take(self, token: Token) -> JsonEvent | None:
        if token.type is TokenType.ERROR:
            self._reset()
            return JsonProblem(f"JSON parse error, stray '{_shown(token.text)}'")
        self._size += len(token.text)
        if token.type is TokenType.TOO_LONG or self._size > self._value_max:
            return self._exceeds("token size")
        if len(self._tokens) >= TOKENS_MAX:
            return self._exceeds("token count")
        if token.type is TokenType.PUNCTUATION and token.text in _NESTS:
            braces, brackets = _NESTS[token.text]
            self._braces += braces
            self._brackets += brackets
            if self._braces + self._brackets > NESTING_MAX:
                return self._exceeds("nesting depth")
        self._tokens.append(token)
        if min(self._braces, self._brackets) >= 0 and max(self._braces, self._brackets) > 0:
            return None
        tokens = self._reset()
        try:
            return JsonValue(parse(tokens))
        except JsonError as error:
            return JsonProblem(str(error))

    def _exceeds(self, what: str) -> JsonProblem:
        self._reset()
        return JsonProblem(f"JSON {what} limit exceeded")

    def _reset(self) -> deque[Token]:
        tokens, self._tokens = self._tokens, deque()
        self._size = self._braces = self._brackets = 0
        return tokens


def _shown(text: bytes) -> str:
    # To QEMU it is a C string, which ends at a NUL.
    return text.partition(b"\0")[0][:_SHOWN_MAX].decode(errors="replace")
