"""Text that came from the other end, made safe for a terminal or a log.

The rules:

1. A peer must not be able to move the cursor, recolour, retitle or answer for its reader. Whatever is
   not a visible character or a space is shown as Python would write it: ESC is ``\\x1b``, a
   right-to-left override ``\\u202e``.
2. A newline and a tab are layout and stay in running text (`visible`); in a line of our own, such as an
   error, they would forge another line and are shown, too (`visible_line`).
3. Bytes are read as UTF-8; those that are not UTF-8 are shown one by one (``\\xff``).
4. Nothing is removed: what a reader sees tells what was there.
"""

from __future__ import annotations

import codecs
import unicodedata

_LAYOUT = "\n\t"


class _Escapes(dict[int, str]):
    """A table for `str.translate` that decides about a character when it first meets it."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        # isprintable() is false for control and format characters (bidi overrides, zero-width ones),
        # surrogates and unassigned code points: all that may act unseen. It is false for other widths
        # of space, too, which do no harm.
        harmless = char.isprintable() or unicodedata.category(char) == "Zs"
        self[code] = char if harmless else char.encode("unicode_escape").decode("ascii")
        return self[code]


_LINE = _Escapes()
_TEXT = _Escapes({ord(char): char for char in _LAYOUT})


def visible(text: str) -> str:
    """Return *text* with everything but visible characters, spaces, newlines and tabs escaped."""
    return text.translate(_TEXT)


def visible_line(text: str) -> str:
    """Return *text* as `visible` does, newlines and tabs escaped as well."""
    return text.translate(_LINE)


class VisibleDecoder:
    """Turns a byte stream that arrives in parts into visible text; a character may span two parts."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")

    def decode(self, part: bytes, *, final: bool = False) -> str:
        """Return the text of *part* as far as its characters are complete, or all of it if *final*."""
        return visible(self._decoder.decode(part, final))
