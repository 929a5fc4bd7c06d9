"""Bytes to JSON tokens, in the way of QEMU's own lexer, its errors and its way out of them included. Sans-IO.

The rules, as `qemu-ga` was seen to keep them (tests compare):

1. White space, newlines too, means nothing: a token ends where a byte cannot continue it.
2. A byte that fits nowhere makes the token an error and is part of it: control characters in a string, 0xFE
   and 0xFF anywhere. So 0xFF, which no JSON text contains, ends whatever was unfinished; clients begin with
   it.
3. After an error everything is skipped up to the next bracket, comma, colon, control character (a newline
   above all), 0xFE or 0xFF. That byte is looked at anew.
4. Strings are in double or single quotes. What their escapes mean is for the parser.
5. A token's length is bounded; so is what a lexer holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto


class TokenType(Enum):
    """What a token is."""

    #: One of ``{}[],:``.
    PUNCTUATION = auto()
    #: With its quotes.
    STRING = auto()
    #: Without fraction and exponent.
    INTEGER = auto()
    FLOAT = auto()
    #: Lower-case letters: true, false, null, or none of them.
    WORD = auto()
    #: What could not be a token, with the byte that made it so.
    ERROR = auto()
    #: A token over the limit; its text is not kept.
    TOO_LONG = auto()


@dataclass(frozen=True)
class Token:
    """One token with its bytes."""

    type: TokenType
    text: bytes


class _State(Enum):
    """Where in a token the lexer is; all but the last three end at the first byte that does not fit."""

    MINUS = auto()
    ZERO = auto()
    INTEGER = auto()
    POINT = auto()
    FRACTION = auto()
    EXPONENT = auto()
    EXPONENT_SIGN = auto()
    EXPONENT_DIGITS = auto()
    WORD = auto()
    STRING = auto()
    START = auto()
    RECOVERY = auto()


def _moves(**states: _State) -> dict[int, _State]:
    """Return a row of the table: byte → next state, from groups of bytes by name."""
    groups = {
        "zero": b"0",
        "nonzero": b"123456789",
        "digit": b"0123456789",
        "minus": b"-",
        "sign": b"+-",
        "point": b".",
        "exponent": b"eE",
        "letter": b"abcdefghijklmnopqrstuvwxyz",
    }
    return {byte: state for group, state in states.items() for byte in groups[group]}


_START = _moves(zero=_State.ZERO, nonzero=_State.INTEGER, minus=_State.MINUS, letter=_State.WORD)
_TABLE: dict[_State, dict[int, _State]] = {
    _State.MINUS: _moves(zero=_State.ZERO, nonzero=_State.INTEGER),
    _State.ZERO: _moves(point=_State.POINT),
    _State.INTEGER: _moves(digit=_State.INTEGER, point=_State.POINT, exponent=_State.EXPONENT),
    _State.POINT: _moves(digit=_State.FRACTION),
    _State.FRACTION: _moves(digit=_State.FRACTION, exponent=_State.EXPONENT),
    _State.EXPONENT: _moves(sign=_State.EXPONENT_SIGN, digit=_State.EXPONENT_DIGITS),
    _State.EXPONENT_SIGN: _moves(digit=_State.EXPONENT_DIGITS),
    _State.EXPONENT_DIGITS: _moves(digit=_State.EXPONENT_DIGITS),
    _State.WORD: _moves(letter=_State.WORD),
}
#: What a token is that ends in a state. In a state that is not here, it must go on.
_ENDS = {
    _State.ZERO: TokenType.INTEGER,
    _State.INTEGER: TokenType.INTEGER,
    _State.FRACTION: TokenType.FLOAT,
    _State.EXPONENT_DIGITS: TokenType.FLOAT,
    _State.WORD: TokenType.WORD,
}
_PUNCTUATION = frozenset(b"{}[],:")
_QUOTES = frozenset(b"\"'")
_DIGITS = frozenset(b"0123456789")
_BACKSLASH = ord("\\")

_BLANK = re.compile(rb"[ \t\r\n]+")
_END_OF_RECOVERY = re.compile(rb"[{}\[\],:\x00-\x1f\xfe\xff]")
_IN_STRING = {
    ord('"'): re.compile(rb"[\"\\\x00-\x1f\xfe\xff]"),
    ord("'"): re.compile(rb"['\\\x00-\x1f\xfe\xff]"),
}
_CONTROL = frozenset([*range(0x20), 0xFE, 0xFF])


class Lexer:
    """Takes bytes in any pieces, gives the tokens in them. How the input was cut makes no difference.

    Args:
        token_max: longest token in bytes.
    """

    def __init__(self, token_max: int) -> None:
        self._token_max = token_max
        self._state = _State.START
        self._token = bytearray()
        self._quote = 0
        self._escaped = False

    def feed(self, data: bytes) -> Iterator[Token]:
        """Yield what *data* completes. The iterator must be run to its end before the next call."""
        at = 0
        while at < len(data):
            if self._state is _State.START:
                blank = _BLANK.match(data, at)
                if blank:
                    at = blank.end()
                    continue
                token, at = self._start(data[at]), at + 1
            elif self._state is _State.RECOVERY:
                found = _END_OF_RECOVERY.search(data, at)
                if found is None:
                    return
                at = found.start()
                self._state = _State.START
                continue
            elif self._state is _State.STRING:
                token, at = self._in_string(data, at)
            else:
                token, used = self._in_token(data[at])
                at += used
            if token is None and len(self._token) > self._token_max:
                token = self._end(TokenType.TOO_LONG, _State.RECOVERY)
            if token is not None:
                yield token

    def _start(self, byte: int) -> Token | None:
        self._token.append(byte)
        if byte in _PUNCTUATION:
            return self._end(TokenType.PUNCTUATION)
        if byte in _QUOTES:
            self._quote, self._state = byte, _State.STRING
            return None
        following = _START.get(byte)
        if following is None:
            return self._fail()
        self._state = following
        return None

    def _in_token(self, byte: int) -> tuple[Token | None, int]:
        """Return the token that ends at a byte, if one does, and how many bytes were used: 0 or 1."""
        following = _TABLE[self._state].get(byte)
        if following is not None:
            self._token.append(byte)
            self._state = following
            return None, 1
        # A number does not go on behind a leading zero.
        if self._state in _ENDS and not (self._state is _State.ZERO and byte in _DIGITS):
            return self._end(_ENDS[self._state]), 0
        self._token.append(byte)
        return self._fail(), 1

    def _in_string(self, data: bytes, at: int) -> tuple[Token | None, int]:
        """Return the string that ends in *data* from *at* on, if it does, and how far it was looked at."""
        if self._escaped:
            self._escaped = False
            self._token.append(data[at])
            return (self._fail() if data[at] in _CONTROL else None), at + 1
        # In steps, so that a string that is too long is given up when it is, not at the end of the data.
        stop = min(len(data), at + self._token_max + 1)
        found = _IN_STRING[self._quote].search(data, at, stop)
        if found is None:
            self._token += data[at:stop]
            return None, stop
        self._token += data[at : found.end()]
        byte = data[found.start()]
        if byte == self._quote:
            token = (
                self._end(TokenType.STRING)
                if len(self._token) <= self._token_max
                else self._end(TokenType.TOO_LONG)
            )
            return token, found.end()
        if byte == _BACKSLASH:
            self._escaped = True
            return None, found.end()
        return self._fail(), found.end()

    def _fail(self) -> Token:
        return self._end(TokenType.ERROR, _State.RECOVERY)

    def _end(self, kind: TokenType, state: _State = _State.START) -> Token:
        text = b"" if kind is TokenType.TOO_LONG else bytes(self._token)
        self._token.clear()
        self._state = state
        self._escaped = False
        return Token(kind, text)
