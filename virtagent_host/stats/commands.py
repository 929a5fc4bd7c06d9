"""`va_stats` and `va_stats_stop`: their entries for the table of `commands`."""

from __future__ import annotations

from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.values import Struct, as_struct, member

from ..command import Argument, Arguments, Client, Command, InvalidArguments, VirtualMachine
from .sections import SECTIONS

#: Seconds to wait for an answer, its window included.
TIMEOUT = 15.0
#: Seconds, at least, between two records. The agent has the same bound.
INTERVAL_MIN = 0.2


async def stats(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_stats`."""
    from .record import checked

    options: Struct = {}
    if arguments["sections"] is not None:
        options["sections"] = [*arguments["sections"]]
    if arguments["top"] is not None:
        options["top"] = arguments["top"]
    if arguments["interval"] is None:
        if arguments["window"] is not None:
            options["window"] = float(arguments["window"])
        return checked(await vm.call("va.stats", options))
    if arguments["window"] is not None:
        raise InvalidArguments("Parameter 'window' does not go with 'interval', which is the window then")

    from .subscription import subscribe

    subscription = await subscribe(vm, client, options, float(arguments["interval"]))
    try:
        names = member(as_struct(subscription.answer, "the answer to va.stats"), "sections", list)
        if not all(name in SECTIONS for name in names):
            raise RemoteProtocolError("the answer to va.stats names sections that there are not")
    except BaseException:
        subscription.stop()
        raise
    return {"id": subscription.number, "interval": subscription.interval, "sections": names}


async def stop(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_stats_stop`."""
    from .subscription import find

    find(client, arguments["id"]).stop()
    return {}


_TIMEOUT = Argument(
    "timeout", "number", "seconds to wait for the answer", optional=True, default=TIMEOUT, minimum=0
)

COMMANDS = (
    Command(
        "va_stats",
        "Measure what goes on in the guest: processors, memory, disks, network, processes and more.",
        "the record (docs/statistics.md); with interval {id, interval, sections}, then events VA_GUEST_STATS",
        'va_stats \'["cpu", "memory"]\'',
        stats,
        (
            Argument("sections", "array", f"which; else all: {', '.join(SECTIONS)}", optional=True),
            Argument(
                "interval",
                "number",
                "seconds between events with a record each, for as long as this client stays",
                optional=True,
                minimum=INTERVAL_MIN,
            ),
            Argument("window", "number", "seconds over which rates are measured", optional=True, minimum=0),
            Argument("top", "integer", "processes that are told", optional=True, minimum=1),
            _TIMEOUT,
        ),
        session=False,
    ),
    Command(
        "va_stats_stop",
        "End the events of a va_stats with an interval.",
        "{}",
        "va_stats_stop 1",
        stop,
        (Argument("id", "integer", "as va_stats told it"),),
        session=False,
    ),
)
