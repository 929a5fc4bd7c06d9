"""The names of what a clipboard holds: which are let through, and under which one name they go.

The rules:

1. A name is a MIME type of printable ASCII, of bounded length. Whatever else a program or the other end
   offers is passed over: the names X11 has besides (TIMESTAMP, MULTIPLE), private formats, and what would
   forge a line.
2. Text has many names and one meaning: ``text/plain``, which is UTF-8 here. The names a program may ask for
   it under are in `TEXT_NAMES`, the best first.
3. Of several images one is taken, the first in `PATTERNS`: programs offer the same picture in eight formats,
   and would have to make all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

TEXT = "text/plain"
#: Names of text, UTF-8 ones first. STRING and TEXT are X11's; both are read as Latin-1 if they are not UTF-8.
TEXT_NAMES = (
    "text/plain;charset=utf-8",
    "UTF8_STRING",
    "text/plain;charset=UTF-8",
    TEXT,
    "STRING",
    "TEXT",
)
#: What is taken unless the user says otherwise, in this order.
PATTERNS = (TEXT, "text/html", "image/png", "image/svg+xml", "image/*")

#: Types of one content. A rich one has three.
TYPES_MAX = 16
#: Names that are looked at; LibreOffice offers forty.
OFFERED_MAX = 256
#: Characters of a name. RFC 6838 allows 127 for each half, and none is half as long.
NAME_MAX = 128

_TOKEN = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*"
_NAME = re.compile(rf"{_TOKEN}/{_TOKEN}")
_PATTERN = re.compile(r"[A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+")


def plain_name(name: str) -> str | None:
    """Return the one name that *name* goes under, ``text/plain`` for UTF8_STRING; None: it goes nowhere."""
    if name in TEXT_NAMES:
        return TEXT
    name = name.partition(";")[0].rstrip(" ")
    return name.lower() if len(name) <= NAME_MAX and _NAME.fullmatch(name) else None


def is_name(name: object) -> bool:
    """Whether this is a name in the form in which it crosses the wire."""
    return isinstance(name, str) and plain_name(name) == name


def is_pattern(text: str) -> bool:
    """Whether this is a type, or a pattern of types such as ``image/*``."""
    return len(text) <= NAME_MAX and _PATTERN.fullmatch(text) is not None


def wanted(offered: Iterable[str], patterns: Sequence[str] = PATTERNS) -> dict[str, str]:
    """Return which of the offered names to take: the one name of each → the name it is offered under.

    In the order of the patterns; no more than `TYPES_MAX`, and one image.
    """
    by_name: dict[str, list[str]] = {}
    for name in list(offered)[:OFFERED_MAX]:
        plain = plain_name(name)
        if plain is not None:
            by_name.setdefault(plain, []).append(name)
    taken: dict[str, str] = {}
    for pattern in patterns:
        for plain, names in by_name.items():
            if plain in taken or not fnmatchcase(plain, pattern.lower()) or len(taken) >= TYPES_MAX:
                continue
            if plain.startswith("image/") and any(other.startswith("image/") for other in taken):
                continue
            taken[plain] = min(names, key=_rank)
    return taken


def _rank(name: str) -> int:
    return TEXT_NAMES.index(name) if name in TEXT_NAMES else len(TEXT_NAMES)
