"""Commands for events: those of QEMU, of va-host and of the guests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from virtagent_protocol.errors import LinkBroken
from virtagent_protocol.text import visible_line

from ..events import GUEST_EVENT, GUEST_EVENTS_LOST
from ..frontend.output import PROGRAM, put_coloured, put_json
from .common import Invocation, VmName, examples, json_option, timeout_option


@click.command(
    epilog=examples(
        "va-host events demo --json",
        "va-host events demo --only VA_STATE_CHANGE --count 1",
        "va-host events web db --only 'backup.*' --follow",
        "va-host events demo --since 0 --only VA_GUEST_EVENT",
    )
)
@click.argument("names", nargs=-1, type=VmName(), metavar="[NAME]...")
@click.option(
    "--only",
    metavar="EVENT",
    multiple=True,
    help="Only events of this name, QEMU's or the guest's; * stands for anything. May be repeated.",
)
@click.option(
    "--since",
    metavar="POSITION",
    type=click.IntRange(min=0),
    help="First the guest's events that are kept, from behind this position: 0 for all of them.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many.")
@click.option(
    "--follow", is_flag=True, help="Wait for a va-host that is away, and go on; nothing of the guest is lost."
)
@timeout_option(None, "End with an error after so long; default: never.")
@json_option("one JSON object a line")
@click.pass_obj
def events(
    invocation: Invocation,
    names: tuple[str, ...],
    only: tuple[str, ...],
    since: int | None,
    count: int | None,
    follow: bool,
    timeout: float | None,
) -> None:
    """Print events as they come: QEMU's, VA_*, and those that guests tell.

    A guest's event has a position. Each is printed once and in order, also those that came while va-host was
    away.

    Ends when the VMs are detached or QEMU ends; with --follow it does not.
    """
    from ..frontend.feed import Feeds
    from ..frontend.reaction import matches

    feeds = Feeds(invocation.runtime, since, follow)
    for name in names or (invocation.choose(None),):
        feeds.add(name)
    shown = 0
    for item in feeds.events(timeout):
        if item.event is None or (only and not matches(item.event, only)):
            continue
        _put_event(item.vm if len(names) > 1 else "", item.event, as_json=invocation.json)
        # Whoever reads a pipe wants each event when it happens.
        sys.stdout.flush()
        shown += 1
        if shown == count:
            return
    if count is not None:
        raise LinkBroken(f"the stream of events ended after {shown} of {count}")


class _OnCommand(click.Command):
    """Takes what stands behind ``--`` as it is: it is the command's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        command: list[str] = []
        if "--" in args:
            at = args.index("--")
            args, command = args[:at], args[at + 1 :]
        rest = super().parse_args(ctx, args)
        if not command:
            raise click.UsageError("say what to run: on EVENT [NAME]... -- COMMAND [ARG]...", ctx)
        ctx.params["command"] = command
        return rest


@click.command(
    name="on",
    cls=_OnCommand,
    options_metavar="[OPTIONS]",
    epilog=examples(
        "va-host on backup.done demo -- logger -t backup",
        "va-host on 'shutdown.*' -- /usr/local/bin/note-shutdown",
        "va-host on BLOCK_IO_ERROR --timeout 30 --state /var/lib/alert.state -- alert.sh",
    ),
)
@click.argument("pattern", metavar="EVENT")
@click.argument("names", nargs=-1, type=VmName(), metavar="[NAME]... -- COMMAND [ARG]...")
@click.option(
    "--since",
    metavar="POSITION",
    type=click.IntRange(min=0),
    help="Also for the guest's events that are kept, from behind this position.",
)
@click.option(
    "--state",
    metavar="FILE",
    type=click.Path(),
    help="Keep in FILE which of the guest's events were handled, and go on there the next time.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many.")
@timeout_option(None, "End a command that takes longer; default: never.")
@click.pass_obj
def on(
    invocation: Invocation,
    pattern: str,
    names: tuple[str, ...],
    command: list[str],
    since: int | None,
    state: str | None,
    count: int | None,
    timeout: float | None,
) -> None:
    """Run a command of this host for each event.

    EVENT is a pattern for the guest's name of it, or for QEMU's: backup.done, 'disk.*', SHUTDOWN. Without
    NAME, the events of all VMs count, also of those that are attached later.

    The command is run without a shell, one at a time, in the order of the events. It finds the event in
    environment variables (VA_EVENT_NAME, VA_EVENT_VM, VA_EVENT_DATA, VA_EVENT_DATA_KEY for each KEY,
    VA_EVENT_USER, …) and as JSON on stdin. A command that fails is told on stderr, and the next event comes.
    """
    from ..frontend.feed import Feeds
    from ..frontend.reaction import Positions, matches, name_of, run

    positions = Positions(Path(state) if state else None)
    feeds = Feeds(invocation.runtime, since, follow=True, known=dict(positions.known))
    for name in names:
        feeds.add(name)
    if not names:
        feeds.add_all()
    done = 0
    for item in feeds.events():
        wanted = item.event is not None and matches(item.event, [pattern])
        if wanted and item.event is not None and (failure := run(command, item.vm, item.event, timeout)):
            invocation.status = 1
            text = f"{PROGRAM}: {item.vm}: {name_of(item.event)}: '{command[0]}' {failure}"
            sys.stderr.write(visible_line(text) + "\n")
            sys.stderr.flush()
        if item.position is not None:
            positions.put(item.vm, item.position)
        done += wanted
        if done == count:
            return


def _put_event(vm: str, event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        put_json({"vm": vm, **event} if vm else event)
        return
    import json
    import time

    stamp, facts = event.get("timestamp", {}), dict(event.get("data", {}))
    clock = time.strftime("%H:%M:%S", time.localtime(stamp.get("seconds", 0)))
    name, tail = event["event"], ""
    if event["event"] == GUEST_EVENT:
        name, caller = facts["event"], facts.get("caller")
        tail = f"  #{facts['position']}"
        if caller is not None:
            tail += f" by {caller['user']} (uid {caller['uid']}, pid {caller['pid']})"
        facts = facts["data"]
    elif event["event"] == GUEST_EVENTS_LOST:
        tail = f"  #{facts['position']}: {facts['lost']} events had no room in the guest"
        facts = {}
    data = "".join(f" {key}={json.dumps(value)}" for key, value in facts.items())
    where = [f"{vm} "] if vm else []
    put_coloured([f"{clock}.{stamp.get('microseconds', 0) // 1000:03} ", *where, (name, "1"), data + tail])


COMMANDS = (events, on)
