"""The command line of the host: `va-host`.

Commands are thin clients of the bridge that a running `va-host attach` or `launch` serves. As whole
processes they must feel instant. So what only some of them need is imported where it is used, and of the
modules with the commands (`MODULES`) only that of the command which is run.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

import virtagent_protocol
from virtagent_protocol.errors import EXIT_STATUS, VirtagentError

from ..frontend.output import EXIT_HELP, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, PROGRAM, put_error
from . import completion
from .common import Invocation, examples

#: Module of this package → its commands, in the order of a VM's life, not of the alphabet.
MODULES = {
    "service": ("attach", "launch", "detach", "list"),
    "guest": ("status", "wait", "ping", "capabilities", "shutdown", "viewfile", "viewdmesg"),
    "exec": ("exec", "shell", "jobs", "attach-job", "kill"),
    "files": ("cp", "ls", "stat", "rm", "mkdir"),
    "freeze": ("freeze", "thaw"),
    "stats": ("stats", "top"),
    "forward": ("forward", "connect"),
    "services": ("services",),
    "sessions": ("sessions",),
    "clipboard": ("clipboard",),
    "extensions": ("x",),
    "events": ("events", "on"),
    "qmp": ("qmp", "monitor"),
    "doctor": ("doctor",),
    "completion": ("completion",),
}
COMMANDS = tuple(name for names in MODULES.values() for name in names)

_STDOUT_FAILED = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


_EPILOG = examples(
    "va-host attach --qmp /run/vm/demo.sock --name demo",
    "va-host wait demo --until ready && va-host viewfile demo /proc/meminfo",
) + (
    f"\b\n{EXIT_HELP}\n\n"
    "Errors are one line on stderr. With --json they are one JSON object there: "
    '{"error": {"kind": "not ready", "message": "…"}}.'
)


class _Commands(click.Group):
    """The commands of `MODULES`, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module, names in MODULES.items():
            if cmd_name in names:
                commands: Sequence[click.Command] = import_module(f"{__name__}.{module}").COMMANDS
                return {str(command.name): command for command in commands}[cmd_name]
        return None


@click.group(
    name=PROGRAM,
    cls=_Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--runtime-dir",
    metavar="DIR",
    help="Where the sockets of attached VMs are. Default: $VIRTAGENT_RUNTIME_DIR, else systemd's "
    "$RUNTIME_DIRECTORY, else /run/virtagent for root or $XDG_RUNTIME_DIR/virtagent.",
)
@click.option("-v", "--verbose", count=True, help="Log more (attach and launch).")
@click.version_option(virtagent_protocol.__version__, prog_name=PROGRAM)
@click.pass_obj
def app(invocation: Invocation, runtime_dir: str | None, verbose: int) -> None:
    """Talk to the virtagent agents in QEMU's guests.

    NAME is a VM's name; it may be left out while exactly one is attached.
    """
    invocation.runtime_dir = runtime_dir
    invocation.verbose = verbose


def main(args: Sequence[str] | None = None) -> int:
    """Run `va-host` and return its exit status.

    Args:
        args: the command line without the program's name; default: that of this process.
    """
    if instruction := os.environ.get(completion.VARIABLE):
        return completion.answer(app, instruction)
    for stream in (sys.stdin, sys.stdout):
        # What a guest or a user writes need not fit the locale's encoding; that is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(sys.argv[1:] if args is None else list(args))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in _STDOUT_FAILED:
            raise
        # Python flushes stdout once more at its end: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # Whoever read stdout has seen enough.
            return EXIT_PIPE_CLOSED
        failed = VirtagentError(f"cannot write to stdout: {error.strerror}")
        put_error(failed)
        return EXIT_STATUS[failed.kind]


def _run(args: list[str]) -> int:
    # click's own main() would turn a closed pipe into exit status 1 and print a line for Ctrl-C.
    invocation = Invocation()
    try:
        with app.make_context(PROGRAM, args, obj=invocation) as context:
            app.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except VirtagentError as error:
        put_error(error, as_json=invocation.json)
        return EXIT_STATUS[error.kind]
    return invocation.status
