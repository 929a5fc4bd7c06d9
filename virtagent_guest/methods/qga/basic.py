"""guest-ping, guest-sync, guest-sync-delimited, guest-info: what a client asks first."""

from __future__ import annotations

from collections.abc import Mapping

from virtagent_protocol import __version__
from virtagent_protocol.values import Struct

from .command import Command, CommandRegistry

#: The schema that was implemented.
QGA_VERSION = "10.1.0"


def make_registry(commands: Mapping[str, Command]) -> CommandRegistry:
    """Return the four commands.

    Args:
        commands: what guest-info tells of: the table that they get into.
    """
    registry = CommandRegistry()

    @registry.command("guest-ping", safe=True, inline=True)
    async def ping() -> None:
        """Answer at once."""

    @registry.command("guest-sync", safe=True, inline=True)
    async def sync(id: int) -> int:
        """Return the id, so that a client finds its own answer among older ones."""
        return id

    @registry.command("guest-sync-delimited", safe=True, inline=True)
    async def sync_delimited(id: int) -> int:
        """Return the id; on qemu-ga's wire a byte 0xFF comes first."""
        return id

    @registry.command("guest-info", safe=True, inline=True)
    async def info() -> Struct:
        """Return version and name of the agent, and for each command whether it is enabled.

        The version is that of the qemu-ga whose commands these are: clients look there for what it can do.
        """
        return {
            "version": QGA_VERSION,
            "agent": f"va-guest {__version__}",
            "supported_commands": [
                {
                    "name": command.name,
                    "enabled": command.enabled,
                    "success-response": command.success_response,
                }
                for command in commands.values()
            ],
        }

    return registry
