"""`va_events`: its entry for the table of `commands`."""

from __future__ import annotations

from ..command import Argument, Arguments, Client, Command, VirtualMachine

#: Entries that one answer holds, unless fewer are asked for.
COUNT = 100


async def held(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_events`."""
    return vm.events.read(arguments["since"], arguments["count"])


COMMANDS = (
    Command(
        "va_events",
        "Read the events of the guest that are kept, from a position on.",
        "{events: [{position, log, sequence, and time, event, data, caller, or lost}…], next: where to go on "
        "from, last, oldest: positions, missed: how many before the oldest are kept no more}",
        "va_events 0",
        held,
        (
            Argument(
                "since", "integer", "the position before the first", optional=True, default=0, minimum=0
            ),
            Argument("count", "integer", "how many at most", optional=True, default=COUNT, minimum=1),
        ),
        session=False,
    ),
)
