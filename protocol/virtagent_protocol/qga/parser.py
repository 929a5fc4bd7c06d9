"""JSON tokens to one value, with the errors of QEMU's parser in its words. Sans-IO.

Beyond RFC 8259 as QEMU has it: single quotes, the escape ``\\'``, and NUL written as 0xC0 0x80 ("modified
UTF-8"). Less: no key twice, no noncharacters (U+FFFE and its like), no lone surrogates.
"""

from __future__ import annotations

import math
import re
from collections import deque

from .lexer import Token, TokenType

#: Digits of the longest number that is kept exactly: more than any 64-bit one has. `int` takes quadratic
#: time.
_DIGITS_MAX = 20
_INTEGERS = range(-(2**63), 2**64)

_WORDS: dict[bytes, object] = {b"true": True, b"false": False, b"null": None}
_ESCAPES = {
    ord('"'): '"',
    ord("'"): "'",
    ord("\\"): "\\",
    ord("/"): "/",
    ord("b"): "\b",
    ord("f"): "\f",
    ord("n"): "\n",
    ord("r"): "\r",
    ord("t"): "\t",
}
_HEX = re.compile(rb"[0-9A-Fa-f]{4}")
_NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)


class JsonError(Exception):
    """The tokens are no value; the message is QEMU's, to be sent as it is."""


def parse(tokens: deque[Token]) -> object:
    """Return the value that *tokens* begin with; they are used up.

    Raises:
        JsonError: there is none.
    """
    token = _next(tokens)
    match token.type:
        case TokenType.STRING:
            return _string(token.text)
        case TokenType.INTEGER | TokenType.FLOAT:
            return _number(token)
        case TokenType.WORD:
            return _word(token.text)
    # One frame of the stack for each level: what is nested is bounded by whoever collects the tokens.
    if token.text == b"{":
        return _object(tokens)
    if token.text == b"[":
        return _array(tokens)
    raise _error("expecting value")


def _object(tokens: deque[Token]) -> dict[str, object]:
    members: dict[str, object] = {}
    if _skip(tokens, b"}"):
        return members
    while True:
        key = parse(tokens)
        if not isinstance(key, str):
            raise _error("key is not a string in object")
        if _next(tokens).text != b":":
            raise _error("missing : in object pair")
        value = parse(tokens)
        if key in members:
            raise _error("duplicate key")
        members[key] = value
        match _next(tokens).text:
            case b"}":
                return members
            case b",":
                continue
        raise _error("expected separator in dict")


def _array(tokens: deque[Token]) -> list[object]:
    items: list[object] = []
    if _skip(tokens, b"]"):
        return items
    while True:
        items.append(parse(tokens))
        match _next(tokens).text:
            case b"]":
                return items
            case b",":
                continue
        raise _error("expected separator in list")


def _next(tokens: deque[Token]) -> Token:
    if not tokens:
        raise _error("premature EOI")
    return tokens.popleft()


def _skip(tokens: deque[Token], text: bytes) -> bool:
    if tokens and tokens[0].text == text:
        tokens.popleft()
        return True
    return False


def _word(text: bytes) -> object:
    if text in _WORDS:
        return _WORDS[text]
    raise _error(f"invalid keyword '{text[:1000].decode()}'")


def _number(token: Token) -> int | float:
    if token.type is TokenType.INTEGER and len(token.text) <= _DIGITS_MAX:
        integer = int(token.text)
        if integer in _INTEGERS:
            return integer
    number = float(token.text)
    # QEMU takes it for infinity, and would write `inf`, which is no JSON.
    if not math.isfinite(number):
        raise _error("number out of range")
    return number


def _string(token: bytes) -> str:
    body = token[1:-1]
    if _BACKSLASH not in body:
        return _plain(body)
    parts = []
    at = 0
    while (backslash := body.find(b"\\", at)) >= 0:
        parts.append(_plain(body[at:backslash]))
        char, at = _escape(token, body, backslash)
        parts.append(char)
    parts.append(_plain(body[at:]))
    return "".join(parts)


_BACKSLASH = b"\\"


def _plain(text: bytes) -> str:
    if text.isascii():
        return text.decode("ascii")
    try:
        decoded = text.replace(b"\xc0\x80", b"\0").decode()
    except UnicodeDecodeError:
        raise _error("invalid UTF-8 sequence in string") from None
    if _NONCHARACTER.search(decoded):
        raise _error("invalid UTF-8 sequence in string")
    return decoded


def _escape(token: bytes, body: bytes, at: int) -> tuple[str, int]:
    """Return what the escape at an index of a string's body stands for, and the index behind it."""
    kind = body[at + 1]
    if kind in _ESCAPES:
        return _ESCAPES[kind], at + 2
    if kind != ord("u"):
        raise _error("invalid escape sequence in string")
    end = at + 6
    code = _unit(body, at)
    if code is not None and 0xD800 <= code < 0xDC00 and body[end : end + 2] == b"\\u":
        low = _unit(body, end)
        if low is not None and 0xDC00 <= low < 0xE000:
            code = 0x10000 + ((code & 0x3FF) << 10 | low & 0x3FF)
            end += 6
    if code is None or 0xD800 <= code < 0xE000 or _NONCHARACTER.match(chr(code)):
        # QEMU shows what stands there, the closing quote included.
        shown = token[at + 1 : end + 1].decode(errors="replace")
        raise _error(f"{shown} is not a valid Unicode character")
    return chr(code), end


def _unit(body: bytes, at: int) -> int | None:
    digits = _HEX.match(body, at + 2)
    return int(digits[0], 16) if digits else None


def _error(what: str) -> JsonError:
    return JsonError(f"JSON parse error, {what}")
