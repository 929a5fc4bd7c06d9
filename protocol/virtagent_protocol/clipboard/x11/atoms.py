"""Names of X11 and their numbers, each asked for once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: Atoms that are remembered. A program that offers names of its own all day must not fill our memory.
_KEPT_MAX = 1000
#: Bytes of an atom's name that is looked at; MIME types are shorter.
_NAME_MAX = 256


class Atoms:
    """The atoms of one server. Every lookup may wait for it."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        if name not in self._numbers:
            self._remember(name, self._display.intern_atom(name))
        return self._numbers[name]

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return the names of atoms; what has none, or one that is no text, is left out."""
        found = []
        for number in numbers:
            if number not in self._names:
                self._look_up(number)
            if name := self._names.get(number):
                found.append(name)
        return found

    def _look_up(self, number: int) -> None:
        from Xlib.error import XError

        try:
            name = self._display.get_atom_name(number)
        except (XError, UnicodeDecodeError):
            return
        if len(name) <= _NAME_MAX:
            self._remember(name, number)

    def _remember(self, name: str, number: int) -> None:
        if len(self._names) >= _KEPT_MAX:
            self._names.clear()
            self._numbers.clear()
        self._names[number] = name
        self._numbers[name] = number
