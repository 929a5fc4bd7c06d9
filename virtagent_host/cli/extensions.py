"""`va-host x`: what the guest's administrator has added to its agent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from virtagent_protocol.errors import VirtagentError

from ..extensions.described import COMMAND_PREFIX
from ..frontend.output import put, put_json
from .common import Invocation, attached_names, examples, json_option, timeout_option

if TYPE_CHECKING:
    from ..command import Command


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """A VM's name comes first, if at all; then the name of an extension."""
    from ..frontend.client import VmClient
    from ..frontend.extensions import list_extensions
    from ..runtime import RuntimeDir

    given = ctx.params.get("words") or ()
    vms = attached_names(ctx)
    name, rest = _split(given, vms)
    words = [] if given else vms
    name = name or (vms[0] if len(vms) == 1 else None)
    if name is not None and not rest:
        try:
            runtime = RuntimeDir.find(ctx.find_root().params.get("runtime_dir"))
            with VmClient.connect(runtime, name) as client:
                found = list_extensions(client)
        except VirtagentError:
            found = []
        words = [*words, *(command.name.removeprefix(COMMAND_PREFIX) for command in found)]
    return [word for word in words if word.startswith(incomplete)]


@click.command(
    "x",
    # A value may begin with a dash.
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "va-host x demo",
        "va-host x demo df /var",
        "va-host x demo df path=/var inodes=true --json",
        """va-host x demo df --json-args '{"path": "/var"}'""",
    ),
)
@click.argument("words", nargs=-1, metavar="[NAME] [METHOD [VALUE]...]", shell_complete=_complete)
@click.option("--json-args", metavar="OBJECT", help="All arguments, as one JSON object.")
@timeout_option(None, "How long to wait for the result; default: a little longer than the guest gives it.")
@json_option("the result, or the list, as one JSON document")
@click.pass_obj
def x(invocation: Invocation, words: tuple[str, ...], json_args: str | None, timeout: float | None) -> None:
    """Call an extension of the guest's agent, or list them.

    Extensions are executables and Python files in the guest's /etc/virtagent/methods.d. Without METHOD they
    are listed, each with its arguments. A VALUE is KEY=VALUE, or stands for the next argument; it is JSON if
    that parses, unless the argument is a string.
    """
    from ..frontend.extensions import call_extension, find_extension, list_extensions, put_result
    from ..frontend.vocabulary import parse_words

    name, rest = _split(words, invocation.runtime.attached())
    with invocation.connect(name) as client:
        if not rest:
            if json_args is not None:
                raise click.UsageError("--json-args goes with a METHOD")
            _put_list(invocation, list_extensions(client))
            return
        command = find_extension(client, COMMAND_PREFIX + rest[0])
        if json_args is None:
            arguments = parse_words(command, rest[1:])
        elif len(rest) > 1:
            raise click.UsageError("give the arguments as words or as --json-args, not both")
        else:
            arguments = command.complete(_object(json_args))
        if timeout is not None:
            arguments["timeout"] = timeout
        result = call_extension(client, command, arguments)
    if invocation.json:
        put_json(result)
    else:
        put_result(result)


def _split(words: Iterable[str], attached: list[str]) -> tuple[str | None, list[str]]:
    """Return the VM's name, if the first word is one, and the other words."""
    rest = list(words)
    return (rest.pop(0) if rest and rest[0] in attached else None), rest


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--json-args is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError("--json-args must be a JSON object")
    return value


def _put_list(invocation: Invocation, commands: list[Command]) -> None:
    from ..frontend.extensions import usage

    if invocation.json:
        put_json([{"name": c.name, "usage": usage(c), "help": c.help} for c in commands])
        return
    for command in commands:
        put(usage(command))
        for line in command.help.splitlines():
            put(f"    {line}".rstrip())


COMMANDS = (x,)
