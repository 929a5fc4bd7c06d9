"""The types of QAPI that the commands' arguments have, and the check of a value against them.

The rules:

1. The words of a refusal are those of QEMU's own check, since clients compare them. Its error class is
   always GenericError.
2. A name within a list or a struct is told with its path, as QEMU does: ``vcpus[0].online``.
3. Nothing is converted: the handler gets the very value that was sent.
4. Text has no NUL and is UTF-8: QEMU's JSON parser refuses anything else before there are arguments.

    check({"path": "/etc/hostname"}, (Argument("path", STR, optional=False),))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from virtagent_protocol.values import Value

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT64_MAX = 2**64 - 1


class ArgumentError(Exception):
    """An argument is missing, unexpected, or of the wrong type; the text is QEMU's."""


class Type(Protocol):
    """A type of QAPI."""

    @property
    def name(self) -> str:
        """The type's name in the schema; lists are ``[name]``."""

    def check(self, value: Value, path: str) -> None:
        """Check a value.

        Raises:
            ArgumentError: it is not of this type; *path* is what it is called there.
        """


@dataclass(frozen=True)
class _Str:
    name: str = "str"

    def check(self, value: Value, path: str) -> None:
        if not isinstance(value, str) or not _is_text(value):
            raise _wrong_type(path, "string")


@dataclass(frozen=True)
class _Bool:
    name: str = "bool"

    def check(self, value: Value, path: str) -> None:
        if not isinstance(value, bool):
            raise _wrong_type(path, "boolean")


@dataclass(frozen=True)
class _Int:
    name: str = "int"

    def check(self, value: Value, path: str) -> None:
        # Not isinstance(): bool is a subclass of int in Python, and another type on the wire.
        if type(value) is not int or not INT64_MIN <= value <= INT64_MAX:
            raise _wrong_type(path, "integer")


@dataclass(frozen=True)
class _Uint64:
    name: str = "uint64"

    def check(self, value: Value, path: str) -> None:
        # Negative ones were accepted by QEMU once, as 2**64 less; nobody means that by them.
        if type(value) is not int or not 0 <= value <= UINT64_MAX:
            raise ArgumentError(f"Parameter '{path}' expects uint64")


STR = _Str()
BOOL = _Bool()
INT = _Int()
UINT64 = _Uint64()


@dataclass(frozen=True)
class Enum:
    """One of some words."""

    name: str
    words: tuple[str, ...]

    def check(self, value: Value, path: str) -> None:
        """Check a value; see `Type`."""
        STR.check(value, path)
        assert isinstance(value, str)
        if value not in self.words:
            raise ArgumentError(f"Parameter '{path}' does not accept value '{value}'")


@dataclass(frozen=True)
class Alternate:
    """A value of one of two types, which JSON can tell apart: a word of an enum, or something else."""

    name: str
    other: Type
    enum: Enum

    def check(self, value: Value, path: str) -> None:
        """Check a value; see `Type`."""
        if isinstance(value, str):
            self.enum.check(value, path)
            return
        try:
            self.other.check(value, path)
        except ArgumentError:
            # For QEMU any number is meant for a branch of numbers, and that one's to refuse.
            if self.other is INT and type(value) in (int, float):
                raise
            raise _wrong_type(path, self.name) from None


@dataclass(frozen=True)
class ListOf:
    """A list of values of one type."""

    element: Type

    @property
    def name(self) -> str:
        """The name, such as ``[str]``."""
        return f"[{self.element.name}]"

    def check(self, value: Value, path: str) -> None:
        """Check a value; see `Type`."""
        if not isinstance(value, list):
            raise _wrong_type(path, "array")
        for i, element in enumerate(value):
            self.element.check(element, f"{path}[{i}]")


@dataclass(frozen=True)
class Argument:
    """A named value: an argument of a command, or a member of a struct."""

    name: str
    type: Type
    optional: bool


@dataclass(frozen=True)
class StructOf:
    """An object with named members."""

    name: str
    members: tuple[Argument, ...]

    def check(self, value: Value, path: str) -> None:
        """Check a value; see `Type`."""
        if not isinstance(value, dict):
            raise _wrong_type(path, "object")
        check(value, self.members, path + ".")


def check(values: Mapping[str, Value], members: tuple[Argument, ...], prefix: str = "") -> None:
    """Check arguments against those that a command has.

    Args:
        values: name → value, as sent.
        members: what there may be.
        prefix: of the names in errors.

    Raises:
        ArgumentError: the first thing that is wrong.
    """
    for member in members:
        if member.name in values:
            member.type.check(values[member.name], prefix + member.name)
        elif not member.optional:
            raise ArgumentError(f"Parameter '{prefix}{member.name}' is missing")
    known = {member.name for member in members}
    for name in values:
        if name not in known:
            raise ArgumentError(f"Parameter '{prefix}{name}' is unexpected")


def _wrong_type(path: str, expected: str) -> ArgumentError:
    return ArgumentError(f"Invalid parameter type for '{path}', expected: {expected}")


def _is_text(value: str) -> bool:
    if "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False  # half of a surrogate pair, which JSON can escape
    return True
