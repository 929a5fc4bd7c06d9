"""What `va-guest` begins with: a command's name, or the agent's own options.

Each command is a module with a `main`, imported when it is called for: `va-guest notify` runs in scripts and
hooks, and must not wait for all that the agent is made of.
"""

from __future__ import annotations

import sys
from importlib import import_module

#: First word of the command line → module of this package with ``main(argv) -> exit status``.
COMMANDS = {
    "call": "calls.cli",
    "notify": "events.cli",
    "policy": "policy.cli",
    "session": "session.cli",
    "extensions": "extensions.cli",
    # Not for people: va-guest-freezer.service runs it.
    "--freezer": "freeze.process",
}


def main(argv: list[str] | None = None) -> int:
    """Run `va-guest`, a command of it or the agent; return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    module = COMMANDS.get(argv[0]) if argv else None
    if module is None:
        module = "cli"
    else:
        argv = argv[1:]
    status: int = import_module(f"{__package__}.{module}").main(argv)
    return status
