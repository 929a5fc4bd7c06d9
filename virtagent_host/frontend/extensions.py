"""A guest's extensions, for the CLI and the monitor: which there are, and a call of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from virtagent_protocol.errors import RemoteProtocolError

from ..command import Command, InvalidArguments
from ..extensions.described import COMMAND_PREFIX, describe, method_name
from ..extensions.listing import TIMEOUT
from .client import GRACE, VmClient
from .fetch import call
from .output import put, put_fields, put_json


def list_extensions(client: VmClient, name: str | None = None) -> list[Command]:
    """Return a guest's extensions as commands.

    Args:
        client: connected.
        name: ``va_x_NAME`` of one; None: all.

    Raises:
        VirtagentError: as `VmClient.execute`.
    """
    arguments: dict[str, object] = {} if name is None else {"name": name}
    answer = call(client, "va_extensions", arguments, TIMEOUT)
    return [_command(entry) for entry in answer["extensions"]]


def find_extension(client: VmClient, name: str) -> Command:
    """Return one extension, ``va_x_NAME``.

    Raises:
        InvalidArguments: the guest has none of that name.
        VirtagentError: as `VmClient.execute`.
    """
    found = list_extensions(client, name) if method_name(name) else []
    if not found:
        raise InvalidArguments(
            f"the guest has no extension {name}: va_extensions lists those it has, and 'va-guest extensions' "
            "in the guest says whether something is wrong with a file"
        )
    return found[0]


def call_extension(client: VmClient, command: Command, arguments: Mapping[str, Any]) -> Any:
    """Call it with checked arguments, among them its timeout, and return its result.

    Raises:
        VirtagentError: as `VmClient.execute`.
    """
    return client.execute(command.name, dict(arguments), timeout=arguments["timeout"] + GRACE)


def usage(command: Command) -> str:
    """Return a line with the name and the arguments of an extension: ``df [path: string = "/"]``."""
    words = [command.name.removeprefix(COMMAND_PREFIX)]
    for argument in command.arguments[:-1]:
        text = f"{argument.name}: {argument.type}"
        words.append(f"[{text} = {json.dumps(argument.default)}]" if argument.optional else text)
    return f"{' '.join(words)} -> {command.returns}"


def put_result(result: Any) -> None:
    """Print what an extension has returned, for people."""
    if isinstance(result, dict):
        put_fields(result)
    elif isinstance(result, str):
        put(result)
    else:
        put_json(result)


def _command(entry: Any) -> Command:
    try:
        name, text = entry["name"], f"{entry['usage']}\n{entry['help']}"
        method = method_name(name)
    except (TypeError, KeyError, AttributeError):
        method = None
    if method is None:
        raise RemoteProtocolError("va-host lists extensions in another form; is it of this version?")
    return describe(method, text)
