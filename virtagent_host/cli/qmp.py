"""Commands that speak QMP itself: one command, and the monitor."""

from __future__ import annotations

from typing import Any

import click

from ..frontend.output import put_json
from .common import Invocation, examples, json_option, timeout_option, vm_argument

#: Seconds for a command of QEMU's: most take milliseconds, a few (dumps, block jobs' ends) longer.
QMP_TIMEOUT = 30.0


@click.command(
    # A value may begin with a dash.
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "va-host qmp demo query-status",
        "va-host qmp demo device_add driver=virtio-rng-pci id=rng0",
        "va-host qmp demo blockdev-add driver=null-co node-name=n0 size=1048576",
    ),
)
@click.argument("words", nargs=-1, required=True, metavar="[NAME] COMMAND [KEY=VALUE]...")
@timeout_option(QMP_TIMEOUT, "How long to wait for the answer.")
@json_option("the result as one JSON document on one line")
@click.pass_obj
def qmp(invocation: Invocation, words: tuple[str, ...], timeout: float) -> None:
    """Run a QMP command of QEMU or a va_* one.

    Prints its result as JSON.

    A VALUE is JSON if it parses as such, else a string; quote a number to make it a string: id='"1"'.
    A dotted KEY nests: file.driver=file is {"file": {"driver": "file"}}.
    """
    name, command, arguments = _split(words)
    with invocation.connect(name) as client:
        result = client.execute(command, arguments, timeout=timeout)
    put_json(result, indent=None if invocation.json else 2)


@click.command(epilog=examples("va-host monitor demo", "echo 'info status' | va-host monitor demo"))
@vm_argument()
@timeout_option(QMP_TIMEOUT, "How long to wait for an answer of QEMU's.")
@click.pass_obj
def monitor(invocation: Invocation, name: str | None, timeout: float) -> None:
    """A prompt for va_* commands and QEMU's human monitor.

    va_ping, va_shutdown powerdown and so on (or by their old names: agent_ping, …) go to the guest's agent;
    any other line, such as 'info status', goes to QEMU. Ctrl-D or 'exit' leaves the prompt; 'quit' is
    QEMU's own and ends QEMU.

    If stdin is no terminal, its lines are run one by one, and the exit status is that of the last that
    failed. An error of QEMU's human monitor is text like any other of its answers, and does not count.
    """
    from ..frontend.monitor import Monitor

    vm = invocation.choose(name)
    invocation.status = Monitor(invocation.runtime, vm, timeout).run()


def _split(words: tuple[str, ...]) -> tuple[str | None, str, dict[str, Any]]:
    """Take ``[NAME] COMMAND [KEY=VALUE]…`` apart: a word without '=' before COMMAND is NAME."""
    from ..frontend.arguments import parse_arguments

    plain = next((i for i, word in enumerate(words) if "=" in word), len(words))
    if plain not in (1, 2):
        raise click.UsageError("usage: va-host qmp [NAME] COMMAND [KEY=VALUE]...")
    try:
        arguments = parse_arguments(words[plain:])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return (words[0] if plain == 2 else None), words[plain - 1], arguments


COMMANDS = (qmp, monitor)
