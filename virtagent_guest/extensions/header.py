"""The comment at the top of an executable that says what it takes and returns.

::

    #!/bin/sh
    # virtagent: Say how full the file system is that a path is on.
    # param path: string = "/" - any path on it
    # param inodes: boolean = false - count inodes, not bytes
    # returns: object
    # timeout: 10
    #
    # What follows an empty comment line is further help.

The rules:

1. The comment begins at the first line and ends at the first that is no comment. A comment begins with ``#``,
   ``//`` or ``--``.
2. What comes before ``virtagent:`` is not looked at. From there to an empty comment line each line is one of
   ``param``, ``returns`` and ``timeout``: a misspelt one is an error, not a comment.
3. A default is JSON; of a string it may stand without quotes. A dash, of any length, between spaces begins
   words for people.
4. ``returns: text`` means that the output is no JSON, but the result as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from virtagent_protocol.signature import NAME, TIMEOUT, TIMEOUT_MAX, Field, Signature, fault_of, parse_json

from .extension import TYPE_WORDS, Unusable, check_size, make_field

#: Bytes of a file in which its header must be.
HEADER_MAX = 16 * 1024
#: What `returns` says of output that is not JSON.
PLAIN = "text"

_COMMENT = re.compile(r"\s*(?:#|//|--)(.*)")
_FIRST = re.compile(r"\s*virtagent\s*:\s*(.*)")
_DIRECTIVE = re.compile(r"\s*(\w+)\s*(.*)")
_PARAM = re.compile(rf"({NAME.pattern})\s*:\s*(\w+)\s*(.*)")
_DASH = re.compile(r"(?:^|\s)(?:--?|[\u2013\u2014])(?:\s|$)")


@dataclass(frozen=True)
class Header:
    """What such a comment says.

    Attributes:
        signature: of the method.
        help: with its summary first.
        plain: rule 4.
    """

    signature: Signature
    help: str
    plain: bool


def has_header(text: str) -> bool:
    """Whether a file's text has the line with ``virtagent:``."""
    return any(_FIRST.fullmatch(comment) for _, comment in _comments(text))


def parse_header(method: str, text: str) -> Header:
    """Return what the comment at the top of a file says.

    Args:
        method: its name.
        text: the file's, or its beginning.

    Raises:
        Unusable: there is none, or it is not of this form.
    """
    comments = _comments(text)
    begin, summary = next(
        ((i, first[1]) for i, (_, comment) in enumerate(comments) if (first := _FIRST.fullmatch(comment))),
        (None, ""),
    )
    if begin is None:
        raise Unusable("it has no comment at its top with '# virtagent: ' and what it does")
    line = comments[begin][0]
    if not summary.strip():
        raise Unusable("'virtagent:' must be followed by what it does, in a line", line)
    reader = _Reader()
    rest = comments[begin + 1 :]
    while rest and rest[0][1].strip():
        number, comment = rest.pop(0)
        reader.read(number, comment)
    signature = Signature(method, tuple(reader.fields), reader.returns, reader.timeout)
    if fault := fault_of(signature):
        raise Unusable(fault, reader.last or line)
    check_size(signature, line)
    words = [summary.strip(), "", *reader.words, "", *(comment.strip() for _, comment in rest)]
    return Header(signature, re.sub(r"\n{3,}", "\n\n", "\n".join(words)).strip(), reader.plain)


class _Reader:
    """Collects what the lines of rule 2 say."""

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.returns, self.plain = "any", False
        self.timeout = TIMEOUT
        self.words: list[str] = []
        #: The line of the last parameter.
        self.last = 0
        self._seen: set[str] = set()

    def read(self, number: int, comment: str) -> None:
        found = _DIRECTIVE.fullmatch(comment)
        word, rest = (found[1], found[2]) if found else (comment.strip()[:40], "")
        if word == "param":
            self._param(number, rest)
        elif word in ("returns", "timeout") and rest.startswith(":"):
            if word in self._seen:
                raise Unusable(f"'{word}' is there twice", number)
            self._seen.add(word)
            value, words = _split(rest[1:])
            (self._returns if word == "returns" else self._timeout)(number, value)
            if words:
                self.words.append(f"{word}: {words}")
        else:
            raise Unusable(
                f"{word!r} is none of 'param NAME: TYPE', 'returns: TYPE', 'timeout: SECONDS'; further help "
                "comes after an empty comment line",
                number,
            )

    def _param(self, number: int, rest: str) -> None:
        found = _PARAM.fullmatch(rest)
        if found is None:
            raise Unusable("write 'param NAME: TYPE', with small letters, digits and _ in NAME", number)
        name, type_word, rest = found.groups()
        default: tuple[Any] | None = None
        if rest.startswith("="):
            value, rest = _default(number, TYPE_WORDS.get(type_word) == "string", rest[1:].lstrip())
            default = (value,)
        value, words = _split(rest)
        if value:
            raise Unusable(f"after the type comes '= DEFAULT' or '- WORDS', not {value[:40]!r}", number)
        self.fields.append(make_field(name, type_word, default, number))
        self.last = number
        if words:
            self.words.append(f"{name}: {words}")

    def _returns(self, number: int, value: str) -> None:
        self.plain = value == PLAIN
        if not self.plain and value not in (*TYPE_WORDS, "nil"):
            raise Unusable(f"there is no type {value[:40]!r} of a result", number)
        self.returns = "string" if self.plain else TYPE_WORDS.get(value, value)

    def _timeout(self, number: int, value: str) -> None:
        if not re.fullmatch(r"[1-9][0-9]{0,3}", value) or int(value) > TIMEOUT_MAX:
            raise Unusable(f"the timeout must be of 1 to {TIMEOUT_MAX} whole seconds", number)
        self.timeout = int(value)


def _comments(text: str) -> list[tuple[int, str]]:
    """Return the comment at the top, as numbers of lines and what follows the comment's sign."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        comment = _COMMENT.fullmatch(line)
        if comment is None:
            break
        found.append((number, comment[1]))
    return found


def _split(text: str) -> tuple[str, str]:
    """Return what stands before the dash, and behind it."""
    found = _DASH.search(text)
    if found is None:
        return text.strip(), ""
    return text[: found.start()].strip(), text[found.end() :].strip()


def _default(number: int, is_string: bool, text: str) -> tuple[Any, str]:
    """Return the default at the beginning of a text, and what follows it."""
    try:
        value, end = parse_json(text)
    except ValueError:
        end = 0
    # Not if it goes on, as the path 1/2 does.
    if end and not text[end : end + 1].strip() and (isinstance(value, str) or value is None or not is_string):
        return value, text[end:]
    if not is_string or text.startswith('"'):
        raise Unusable(f"the default must be JSON, not {text[:40]!r}", number)
    value, _ = _split(text)
    return value, text[len(value) :]
