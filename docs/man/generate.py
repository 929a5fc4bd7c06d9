"""Print the man page va-host(1), made from the command line's own help.

python docs/man/generate.py >docs/man/va-host.1
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

import virtagent_protocol
from virtagent_host.cli import app
from virtagent_host.commands import COMMANDS
from virtagent_protocol.errors import EXIT_STATUS

_ENVIRONMENT = {
    "VIRTAGENT_RUNTIME_DIR": "The runtime directory, unless --runtime-dir is given.",
    "RUNTIME_DIRECTORY": "The same, as systemd sets it for a unit with RuntimeDirectory=.",
    "XDG_RUNTIME_DIR": "For users other than root, the runtime directory is virtagent in this one.",
    "XDG_STATE_HOME": "The monitor keeps its history in virtagent/monitor_history in this one.",
    "NO_COLOR": "If set, nothing is coloured.",
}


def main() -> None:
    """Print the page."""
    print("\n".join(page()))


def page() -> Iterator[str]:
    """Yield the page's lines, in the man(7) macros."""
    yield '.\\" Made by docs/man/generate.py from the help of the commands. Do not edit.'
    yield f'.TH VA\\-HOST 1 "" "virtagent {virtagent_protocol.__version__}" "User Commands"'
    yield ".SH NAME"
    yield "va\\-host \\- talk to the virtagent agents in QEMU's guests"
    yield ".SH SYNOPSIS"
    yield f"\\fBva\\-host\\fR {_text('[--runtime-dir DIR] [-v] COMMAND [ARGUMENT]...')}"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(app.help or "")
    yield ".SH OPTIONS"
    yield from _options(app)
    yield ".SH COMMANDS"
    context = click.Context(app)
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        assert command is not None
        yield from _command(command)
    yield ".SH BRIDGE COMMANDS"
    yield _text("Further commands of the QMP socket that va-host serves, NAME.qmp in the runtime directory.")
    for bridged in COMMANDS.values():
        yield ".TP"
        words = (f"[{a.name}]" if a.optional else a.name for a in bridged.arguments)
        yield f"\\fB{bridged.name}\\fR {_text(' '.join(words))}".rstrip()
        yield _text(f"{bridged.help} Returns {bridged.returns}.")
    yield ".SH EXIT STATUS"
    meanings = {0: ["done"], 1: [], 2: ["usage error"]}
    for kind, status in EXIT_STATUS.items():
        meanings.setdefault(status, []).append(kind.value)
    for status, kinds in meanings.items():
        yield from _entry(str(status), " or ".join(kinds))
    yield ".SH ENVIRONMENT"
    for name, meaning in _ENVIRONMENT.items():
        yield from _entry(name, meaning)
    yield ".SH SEE ALSO"
    yield "\\fBva\\-guest\\fR(1), \\fBqemu\\fR(1)"


def _command(command: click.Command, group: str = "") -> Iterator[str]:
    context = click.Context(command, info_name=command.name)
    usage = " ".join(piece for p in command.get_params(context) for piece in p.get_usage_pieces(context))
    yield f".SS {_text(f'{group}{command.name}')} {_text(usage)}".rstrip()
    yield from _paragraphs(command.help or "")
    yield from _options(command)
    example = re.findall(r"(?m)^  (va-host.*|.*\| va-host.*|eval.*)$", command.epilog or "")
    yield ".PP"
    yield "Example:"
    yield ".PP"
    yield ".nf"
    yield from (f"\\&  {_text(line)}" for line in example)
    yield ".fi"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from _command(command.commands[name], f"{group}{command.name} ")


def _options(command: click.Command) -> Iterator[str]:
    for option in command.params:
        if isinstance(option, click.Option):
            value = "" if option.is_flag or option.count else f" {option.metavar or _choices(option.type)}"
            default = f" Default: {option.default}." if option.show_default else ""
            yield from _entry(", ".join(option.opts) + value, (option.help or "") + default)


def _choices(kind: click.ParamType) -> str:  # type: ignore[type-arg,unused-ignore]
    return "|".join(kind.choices) if isinstance(kind, click.Choice) else "NUMBER"


def _entry(term: str, meaning: str) -> Iterator[str]:
    yield ".TP"
    yield f"\\fB{_text(term)}\\fR"
    yield _text(meaning)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Return *text* so that troff shows it as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    # A line that begins with a dot or a quote would be a request.
    return re.sub(r"(?m)^([.'])", r"\\&\1", text).replace("…", "\\[u2026]")


if __name__ == "__main__":
    main()
