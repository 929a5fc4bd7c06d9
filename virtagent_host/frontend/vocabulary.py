"""What may be typed at the monitor: the `va_*` table as words on a line, and the original's names for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from ..commands import COMMANDS, Argument, Command, InvalidArguments
from ..extensions.described import COMMAND_PREFIX
from .arguments import parse_value

#: The commands of the original virtagent's versions 5 and 6.
ALIASES = {
    f"agent_{topic}": f"va_{topic}" for topic in ("ping", "capabilities", "shutdown", "viewfile", "viewdmesg")
}


def names() -> list[str]:
    """Return the names of the monitor's own commands, old names and all."""
    return [*COMMANDS, *ALIASES, "help", "exit"]


def find_command(word: str) -> Command:
    """Return the `va_*` command of that name or old name.

    Raises:
        InvalidArguments: there is none.
    """
    try:
        return COMMANDS[ALIASES.get(word, word)]
    except KeyError:
        raise InvalidArguments(f"The command {word} has not been found; 'help' lists what there is") from None


def typed_arguments(command: Command) -> list[Argument]:
    """Return the arguments that may be typed: all but ``format``, for here bytes are printed as such."""
    if command.name.startswith(COMMAND_PREFIX):
        return list(command.arguments)  # of an extension, it is a name like any other
    return [argument for argument in command.arguments if argument.name != "format"]


def usage(command: Command) -> str:
    """Return a command as help shows it: ``va_shutdown shutdown_mode [timeout]``."""
    shown = (f"[{a.name}]" if a.optional else a.name for a in typed_arguments(command))
    return " ".join([command.name, *shown])


def described(command: Command) -> str:
    """Return the help for one command: usage, what it does, its arguments, result and an example."""
    lines = [usage(command), command.help]
    for argument in typed_arguments(command):
        notes = [argument.help, "|".join(argument.choices)]
        if argument.default is not None:
            notes.append(f"default {argument.default}")
        lines.append(f"  {argument.name}: {', '.join(filter(None, notes))}")
    lines += [f"Returns {command.returns}.", f"Example: {command.example}"]
    return "\n".join(lines)


def parse_line(command: Command, rest: str) -> dict[str, Any]:
    """Return the arguments that the rest of a line means, by position or as ``argument=value``, checked.

    What was left out has its default; what has none is left out.

    Raises:
        InvalidArguments: they do not fit the command's table entry.
    """
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InvalidArguments(f"{command.name}: {error}") from None
    return parse_words(command, words)


def parse_words(command: Command, words: Iterable[str]) -> dict[str, Any]:
    """As `parse_line`, for a line that is words already."""
    expected = {argument.name: argument for argument in typed_arguments(command)}
    positions = iter(expected)
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in expected:
            name, value = next(positions, ""), word
        if not name:
            raise InvalidArguments(f"{value}: too many values; usage: {usage(command)}")
        given[name] = value if expected[name].type == "string" else parse_value(value)
    complete = command.complete(given)
    return {name: complete[name] for name in expected if complete[name] is not None}
