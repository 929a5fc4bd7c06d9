"""QMP arguments as words of a command line: ``key=value``, in the way of qmp-shell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def parse_arguments(words: Iterable[str]) -> dict[str, Any]:
    """Return the arguments that ``key=value`` words mean.

    A value is JSON if it parses as such, else the string it is. A dotted key nests.

    Raises:
        ValueError: a word is not of that form, a key is given twice, or a key is both a value and a parent.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        *parents, last = key.split(".")
        if not equals or not all([*parents, last]):
            raise ValueError(f"{word}: expected KEY=VALUE")
        target = arguments
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"{key}: {parent} has a value already")
        if last in target:
            raise ValueError(f"{key} is given twice")
        target[last] = parse_value(value)
    return arguments


def parse_value(text: str) -> Any:
    """Return the JSON value that *text* is, or *text* itself."""
    try:
        # NaN and Infinity are Python's, not JSON's; QEMU would refuse the whole message.
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(text: str) -> Any:
    raise ValueError(text)
