"""The values that XML-RPC carries, and typed access to those that an untrusted peer sent.

A value is nil, bool, int (64 bit, signed), float, str, bytes, a list of values, or a dict from
str to values (SPEC.md section 5). The accessors below are the only way the code takes a
received struct apart: they raise `RemoteProtocolError` with the member's name, never KeyError.
"""

from __future__ import annotations

from typing import TypeVar

from .errors import RemoteProtocolError

Value = None | bool | int | float | str | bytes | list["Value"] | dict[str, "Value"]
Struct = dict[str, Value]

_T = TypeVar("_T", bool, int, float, str, bytes, list[Value], Struct)

#: Python type → type name of XML-RPC, as `system.methodSignature` gives it.
XMLRPC_TYPE_NAMES: dict[object, str] = {
    type(None): "nil",
    bool: "boolean",
    int: "int",
    float: "double",
    str: "string",
    bytes: "base64",
    list: "array",
    dict: "struct",
}


def type_name(value: object) -> str:
    """Return the XML-RPC type name of a value, for messages to people."""
    return XMLRPC_TYPE_NAMES.get(type(value), type(value).__name__)


def as_struct(value: Value, what: str) -> Struct:
    """Return *value* if it is a struct.

    Args:
        value: as received.
        what: how to call it in the error, such as ``"the answer to va.hello"``.

    Raises:
        RemoteProtocolError: it is something else.
    """
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{what} must be a struct, not {type_name(value)}")
    return value


def member(struct: Struct, name: str, expected: type[_T], default: _T | None = None) -> _T:
    """Return member *name* of a received struct, of exactly the *expected* type.

    Raises:
        RemoteProtocolError: it is missing and has no default, or has another type.
    """
    if name not in struct and default is not None:
        return default
    value = struct.get(name)
    # bool is a subclass of int in Python; on the wire they are different types.
    if type(value) is not expected:
        found = type_name(value) if name in struct else "missing"
        raise RemoteProtocolError(f"member '{name}' must be {XMLRPC_TYPE_NAMES[expected]}, it is {found}")
    return value
