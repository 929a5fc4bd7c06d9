"""What the schema has and only Windows does: listed by guest-info as disabled, as qemu-ga itself does."""

from __future__ import annotations

from virtagent_protocol.values import Value

from .command import CommandRegistry

registry = CommandRegistry()


@registry.command("guest-get-devices", disabled="it exists on Windows only")
async def get_devices() -> list[Value]:
    """Return the devices' drivers."""
    raise AssertionError("a disabled command is not called")
