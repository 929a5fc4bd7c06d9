"""The signature of an extension's method, as one line of text (SPEC.md section 16).

`system.methodSignature` tells types, and neither names nor defaults. So the first line of an extension's
`system.methodHelp` tells all of it, for people and programs alike::

    va.x_df(path: string = "/", count: int = 10) -> struct within 30 s

The rules:

1. The types are XML-RPC's, as `system.methodSignature` gives them, or ``any``. Defaults are JSON.
2. Parameters that may be left out come last. One whose default is ``null`` may be nil.
3. `within` is the time after which the guest ends it, in whole seconds.
4. Who reads such a line does not trust it: everything in it is bounded, and of one form only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import RemoteProtocolError
from .values import Struct, Value, type_name

PREFIX = "va.x_"
#: Names are typed, and become commands, variables and arguments of functions: of one plain form.
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
#: Parameters of one method: more are a struct's members.
PARAMETERS_MAX = 16
#: Characters of the line, and of it with the help that follows: what fits a screen or two.
LINE_MAX, HELP_MAX = 2000, 6000
#: Seconds. What takes longer than an hour is a job (`va.exec`), which nobody has to wait for.
TIMEOUT, TIMEOUT_MAX = 30, 3600
#: Extensions of one guest that are looked at.
EXTENSIONS_MAX = 64

ANY = "any"
#: Types of parameters. Bytes are none of them: arguments and results are JSON.
TYPES = ("string", "int", "double", "boolean", "array", "struct", ANY)
RETURNS = (*TYPES, "nil")

_HEAD = re.compile(rf"({re.escape(PREFIX)}{NAME.pattern})\(")
_FIELD = re.compile(rf"({NAME.pattern}): ([a-z]+)")
_TAIL = re.compile(r"\) -> ([a-z]+) within ([1-9][0-9]{0,3}) s")


@dataclass(frozen=True)
class Field:
    """One parameter.

    Attributes:
        name: of the form `NAME`.
        type: one of `TYPES`.
        optional: whether it may be left out; its value is then *default*.
        default: what JSON carries.
    """

    name: str
    type: str
    optional: bool = False
    default: Any = None

    @property
    def nullable(self) -> bool:
        """Whether it may be nil."""
        return self.optional and self.default is None

    def takes(self, value: Value) -> bool:
        """Whether a value is of its type."""
        return self.type in (ANY, type_name(value)) or (self.nullable and value is None)

    def __str__(self) -> str:
        default = f" = {json.dumps(self.default)}" if self.optional else ""
        return f"{self.name}: {self.type}{default}"


@dataclass(frozen=True)
class Signature:
    """What a method takes and returns.

    Attributes:
        method: ``va.x_NAME``.
        fields: in order.
        returns: one of `RETURNS`.
        timeout: seconds.
    """

    method: str
    fields: tuple[Field, ...] = ()
    returns: str = ANY
    timeout: int = TIMEOUT

    def __str__(self) -> str:
        fields = ", ".join(map(str, self.fields))
        return f"{self.method}({fields}) -> {self.returns} within {self.timeout} s"

    def complete(self, params: Sequence[Value]) -> Struct:
        """Return checked parameters by their names, with the defaults of what was left out."""
        given: Struct = dict(zip((f.name for f in self.fields), params, strict=False))
        return {field.name: given.get(field.name, field.default) for field in self.fields}


def parse_signature(line: str) -> Signature:
    """Return what such a line says.

    Raises:
        RemoteProtocolError: it is of another form.
    """
    if len(line) > LINE_MAX:
        raise RemoteProtocolError(f"the signature of an extension has {len(line)} characters")
    head = _HEAD.match(line)
    if head is None:
        raise _not_one(line)
    fields: list[Field] = []
    at = head.end()
    while (tail := _TAIL.fullmatch(line, at)) is None:
        if fields:
            if not line.startswith(", ", at):
                raise _not_one(line)
            at += 2
        field, at = _parse_field(line, at)
        fields.append(field)
    signature = Signature(head[1], tuple(fields), tail[1], int(tail[2]))
    if fault := fault_of(signature):
        raise RemoteProtocolError(f"{_not_one(line)}: {fault}")
    return signature


def fault_of(signature: Signature) -> str:
    """Return what is wrong with a signature that is of the right form, or nothing."""
    fields = signature.fields
    names = [field.name for field in fields]
    if len(fields) > PARAMETERS_MAX:
        return f"it has {len(fields)} parameters, {PARAMETERS_MAX} are allowed"
    for i, field in enumerate(fields):
        if field.name in names[:i]:
            return f"parameter '{field.name}' is there twice"
        if field.type not in TYPES:
            return f"there is no type '{field.type}' of a parameter"
        if field.optional and not field.takes(field.default):
            return f"the default of '{field.name}' is no {field.type}"
        if i and fields[i - 1].optional and not field.optional:
            return f"parameter '{field.name}' has no default and comes behind one that has"
    if signature.returns not in RETURNS:
        return f"there is no type '{signature.returns}' of a result"
    if not 1 <= signature.timeout <= TIMEOUT_MAX:
        return f"its time is not of 1 to {TIMEOUT_MAX} s"
    return ""


def parse_json(text: str, at: int = 0) -> tuple[Any, int]:
    """Return the JSON value that begins there, and where it ends.

    Raises:
        ValueError: there is none.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _parse_field(line: str, at: int) -> tuple[Field, int]:
    found = _FIELD.match(line, at)
    if found is None:
        raise _not_one(line)
    at = found.end()
    if not line.startswith(" = ", at):
        return Field(found[1], found[2]), at
    try:
        default, at = parse_json(line, at + 3)
    except ValueError:
        raise _not_one(line) from None
    return Field(found[1], found[2], True, default), at


def _not_one(line: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"this is no signature of an extension: {line[:80]!r}")
