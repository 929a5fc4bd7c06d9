"""An extension as its guest describes it, as a command: its arguments are checked as those of every other.

The rules:

1. A guest is not trusted: names are of one plain form, and at most `EXTENSIONS_MAX` are looked at; a
   description is of bounded length, and its first line is a signature (`virtagent_protocol.signature`).
2. This is read by the service and by the CLI, which must start at once: no trio here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.signature import ANY, EXTENSIONS_MAX, HELP_MAX, NAME, PREFIX, Field, parse_signature
from virtagent_protocol.text import visible
from virtagent_protocol.values import Value

from ..command import Argument, Arguments, Command

#: What such a command begins with.
COMMAND_PREFIX = "va_x_"
#: Seconds more than the guest gives an extension, and takes to end it: so it is the guest that says so.
GRACE = 5.0

#: Type in a signature → in QEMU's words.
_QEMU_TYPES = {
    "string": "string",
    "int": "integer",
    "double": "number",
    "boolean": "boolean",
    "array": "array",
    "struct": "object",
    ANY: ANY,
}


@dataclass(frozen=True)
class FreeArgument(Argument):
    """An argument of an extension.

    Attributes:
        nullable: whether it may be null.
    """

    nullable: bool = False

    def check(self, value: object) -> None:
        """As `Argument.check`, and arrays hold what they like."""
        if self.type == ANY or (self.nullable and value is None):
            return
        if self.type == "array" and isinstance(value, list):
            return
        super().check(value)


def command_name(method: str) -> str:
    """Return the command for a method: ``va.x_df`` → ``va_x_df``."""
    return COMMAND_PREFIX + method.removeprefix(PREFIX)


def method_name(command: str) -> str | None:
    """Return the method for a command, or None if it cannot be one."""
    name = command.removeprefix(COMMAND_PREFIX)
    return PREFIX + name if command != name and NAME.fullmatch(name) else None


def command_names(methods: Iterable[str]) -> list[str]:
    """Return the commands for those of a guest's methods that are extensions, sorted (rule 1)."""
    names = (method.removeprefix(PREFIX) for method in methods if method.startswith(PREFIX))
    return [COMMAND_PREFIX + name for name in sorted(filter(NAME.fullmatch, names))[:EXTENSIONS_MAX]]


async def _not_here(vm: object, arguments: Arguments, client: object) -> object:
    raise AssertionError("only the service runs commands")


def describe(method: str, text: Value) -> Command:
    """Return the command that a guest's description of a method means.

    Args:
        method: of which it was asked.
        text: the answer.

    Raises:
        RemoteProtocolError: it is no such description.
    """
    if not isinstance(text, str) or len(text) > HELP_MAX:
        raise RemoteProtocolError(f"the guest does not describe {method} in at most {HELP_MAX} characters")
    line, _, words = text.partition("\n")
    signature = parse_signature(line)
    if signature.method != method:
        raise RemoteProtocolError(f"the guest describes {signature.method}, and was asked for {method}")
    timeout = Argument(
        "timeout",
        "number",
        "seconds to wait for the answer",
        optional=True,
        default=signature.timeout + GRACE,
        minimum=0,
    )
    name = command_name(method)
    return Command(
        name,
        visible(words).strip(),
        _QEMU_TYPES.get(signature.returns, "nothing"),
        " ".join([name, *(f"{field.name}=…" for field in signature.fields if not field.optional)]),
        _not_here,
        (*map(_argument, signature.fields), timeout),
    )


def params(command: Command, arguments: Arguments) -> list[Value]:
    """Return checked arguments as the method takes them."""
    return [_value(argument, arguments[argument.name]) for argument in command.arguments[:-1]]


def _value(argument: Argument, value: Any) -> Any:
    # JSON does not tell 3 from 3.0, and XML-RPC does.
    return float(value) if argument.type == "number" and isinstance(value, int) else value


def _argument(field: Field) -> FreeArgument:
    if field.name == "timeout":
        raise RemoteProtocolError("an extension has an argument 'timeout', which is the bridge's")
    type_ = _QEMU_TYPES[field.type]
    return FreeArgument(field.name, type_, "", field.optional, field.default, nullable=field.nullable)
