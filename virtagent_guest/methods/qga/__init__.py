"""The commands of the QEMU guest agent: one topic a module, each with its own `registry`.

`command` has the rules for a command and its handler. Their names, arguments, results and errors are those of
QEMU's qga/qapi-schema.json (of QEMU 10.2.50). To add a topic: write its module, and name it in `TOPICS`.

* `COMMANDS`: all of them by name, those that this system has not included; for the wire that qemu-ga speaks.
* `registry`: those that it has, as XML-RPC methods ``guest.…``.
"""

from __future__ import annotations

from . import (
    basic,
    clock,
    disks,
    execute,
    files,
    fsfreeze,
    fsinfo,
    load,
    memory,
    network,
    osinfo,
    passwords,
    power,
    sshkeys,
    users,
    vcpus,
    windows,
)
from .bindings import xmlrpc_methods
from .command import FREEZE, Caller, Command, CommandRegistry, QgaError

__all__ = ["COMMANDS", "FREEZE", "Caller", "Command", "QgaError", "registry"]

COMMANDS: dict[str, Command] = {}

#: The topics' registries, in the order in which guest-info lists them.
TOPICS: tuple[CommandRegistry, ...] = (
    basic.make_registry(COMMANDS),
    clock.registry,
    power.registry,
    files.registry,
    fsfreeze.registry,
    fsinfo.registry,
    network.registry,
    vcpus.registry,
    disks.registry,
    passwords.registry,
    memory.registry,
    execute.registry,
    osinfo.registry,
    users.registry,
    sshkeys.registry,
    load.registry,
    windows.registry,
)

for _topic in TOPICS:
    for _command in _topic:
        if _command.name in COMMANDS:
            raise ValueError(f"command {_command.name} is registered twice")
        COMMANDS[_command.name] = _command

registry = xmlrpc_methods(COMMANDS.values())
