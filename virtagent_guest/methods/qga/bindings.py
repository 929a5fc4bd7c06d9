"""The commands of the QEMU guest agent as XML-RPC methods: ``guest.file_open({"path": …})``.

The rules:

1. A method has one parameter, the struct of the arguments under the schema's names; it may be left out
   where every argument is optional.
2. A reply must fit one message, so its text is bounded (`REPLY_MAX`). Handlers know the bound.
3. XML has no form for most control characters. A guest's text may hold them (a process title, a key's
   comment): each goes out as U+FFFD, the replacement character.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from typing import Any

from virtagent_protocol.limits import BODY_MAX, KIB
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Struct, Value

from .command import NAMES, Caller, Command

#: Bytes of text in a reply: a message's, less what its envelope takes.
REPLY_MAX = BODY_MAX - 64 * KIB

_CALLER = Caller(REPLY_MAX)

#: What is no Char of XML 1.0.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xmlrpc_methods(commands: Iterable[Command]) -> Registry:
    """Return a registry with a method for each command that this guest has."""
    registry = Registry()
    for command in commands:
        if not command.disabled:
            _add(registry, command)
    return registry


def _add(registry: Registry, command: Command) -> None:
    async def handler(call: Call, arguments: Struct) -> Value:
        return _made_xml(await command.run(arguments, _CALLER))

    if all(argument.optional for argument in command.arguments):
        handler.__defaults__ = ({},)
    # The registry takes signature and help from the handler.
    handler.__annotations__["return"] = typing.get_type_hints(command.handler, localns=NAMES)["return"]
    handler.__doc__ = _help(command)
    registry.method(command.method_name, inline=command.inline, urgent=command.urgent)(handler)


def _help(command: Command) -> str:
    if not command.arguments:
        listed = "no arguments"
    else:
        listed = ", ".join(
            f"[{a.name}: {a.type.name}]" if a.optional else f"{a.name}: {a.type.name}"
            for a in command.arguments
        )
    return f"{command.help}\n\nAs {command.name} of the QEMU guest agent: {listed}."


def _made_xml(value: Any) -> Value:
    if isinstance(value, str):
        return _NOT_XML.sub("\ufffd", value)
    if isinstance(value, list):
        return [_made_xml(element) for element in value]
    if isinstance(value, dict):
        return {name: _made_xml(member) for name, member in value.items()}
    assert value is None or isinstance(value, (bool, int, float))
    return value
