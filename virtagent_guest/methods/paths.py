"""Paths as parameters: a string, or base64 where a path is not UTF-8 or has control characters in it."""

from __future__ import annotations

from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.trees.entries import PATH_MAX
from virtagent_protocol.values import Struct, Value, member, type_name


def path_of(value: Value, name: str = "path") -> bytes:
    """Return the bytes of an absolute path.

    Raises:
        Fault: INVALID_PARAMS, naming the parameter.
    """
    try:
        # UTF-8 whatever the agent's locale, so that a path means the same in every guest.
        path = value.encode() if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise Fault(FaultCode.INVALID_PARAMS, f"{name} is not text: {value!r:.80}") from None
    if not isinstance(path, bytes):
        raise Fault(FaultCode.INVALID_PARAMS, f"{name} must be string or base64, not {type_name(value)}")
    if not path.startswith(b"/"):
        raise Fault(FaultCode.INVALID_PARAMS, f"{name} must be absolute: {shown(path)!r:.80}")
    if len(path) >= PATH_MAX or b"\0" in path:
        raise Fault(FaultCode.INVALID_PARAMS, f"{name} is no path: {shown(path)!r:.80}")
    return path


def flag(options: Struct, name: str) -> bool:
    """Return a member that is boolean, or may be left out. Raises Fault."""
    return bool(option(options, name, bool, False))


def option(options: Struct, name: str, expected: type, default: Value) -> Value:
    """Return a member of that type, or the default. Raises Fault."""
    try:
        return member(options, name, expected) if name in options else default
    except RemoteProtocolError as error:
        raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None


def shown(path: bytes) -> str:
    """Return a path for a message; XML-RPC carries no lone surrogates."""
    return path.decode(errors="backslashreplace")
