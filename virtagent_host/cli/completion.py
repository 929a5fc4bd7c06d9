"""Completion for shells: `va-host completion bash`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class, shell_complete

from ..frontend.output import PROGRAM, put
from .common import examples

#: By this variable the shell's script asks for completions instead of running a command.
VARIABLE = "_VA_HOST_COMPLETE"


@click.command(
    epilog=examples(
        'eval "$(va-host completion bash)"',
        "va-host completion fish >~/.config/fish/completions/va-host.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script for completion in a shell.

    It completes commands, names of attached VMs, states and modes.
    """
    made = get_completion_class(shell)
    assert made is not None
    put(made(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())


def answer(app: click.Command, instruction: str) -> int:
    """Answer the shell's script; return the exit status."""
    return shell_complete(app, {}, PROGRAM, VARIABLE, instruction)


COMMANDS = (completion,)
