"""`va-host stats` and `va-host top`: what goes on in guests."""

from __future__ import annotations

import itertools

import click

from ..commands import COMMANDS as TABLE
from ..frontend.output import on_terminal, put, put_json
from ..frontend.top.figures import ORDERS
from ..stats.commands import INTERVAL_MIN, TIMEOUT
from ..stats.sections import SECTIONS
from .common import Invocation, VmName, examples, json_option, timeout_option, vm_argument

#: Seconds between records, if only their number was given; and between those of `top`.
_INTERVAL = 1.0


@click.command(
    help="\n\n".join(
        [
            TABLE["va_stats"].help,
            "Once, or with --interval or --count again and again; with --json a line each. "
            "docs/statistics.md has every member with its unit.",
        ]
    ),
    epilog=examples(
        "va-host stats demo", "va-host stats demo --json --interval 5 --section cpu --section memory"
    ),
)
@vm_argument()
@click.option(
    "--section",
    "sections",
    multiple=True,
    type=click.Choice(SECTIONS),
    help="Tell this section, and others that are named so; default: all.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=INTERVAL_MIN),
    metavar="SECONDS",
    help="Tell it again each so many seconds, until Ctrl-C.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many records.")
@click.option("--top", type=click.IntRange(min=1), help="How many processes are told; default: 10.")
@timeout_option(TIMEOUT, "How long to wait for the guest's answer.")
@json_option("each record as one JSON object on a line of its own")
@click.pass_obj
def stats(
    invocation: Invocation,
    name: str | None,
    sections: tuple[str, ...],
    interval: float | None,
    count: int | None,
    top: int | None,
    timeout: float,
) -> None:
    import sys

    from ..frontend import statistics

    arguments: dict[str, object] = {"sections": [*sections]} if sections else {}
    if top is not None:
        arguments["top"] = top
    with invocation.connect(name) as client:
        if interval is None and count in (None, 1):
            records = iter([statistics.once(client, arguments, timeout)])
        else:
            records = statistics.again_and_again(client, arguments, interval or _INTERVAL, timeout)
        for number, record in enumerate(itertools.islice(records, count)):
            if invocation.json:
                put_json(record)
            else:
                put(("\n" if number else "") + "\n".join(statistics.lines(record)))
            # Whoever reads the pipe wants it now, not when 8 KiB have come together.
            sys.stdout.flush()


@click.command(
    help="Show what goes on in all VMs that are attached, or in those that are named, on a live screen.\n\n"
    "Keys: q quits; s sorts by the next column, and n, c, m, p, d, t by name, CPU, memory, pressure, disk, "
    "network traffic; r turns the order round; arrows, j and k scroll.",
    epilog=examples("va-host top", "va-host top web1 web2 --sort cpu", "va-host top --once"),
)
@click.argument("names", nargs=-1, type=VmName(), metavar="[NAME]...")
@click.option(
    "--interval",
    type=click.FloatRange(min=INTERVAL_MIN),
    metavar="SECONDS",
    default=_INTERVAL,
    show_default=True,
    help="How often each guest is measured.",
)
@click.option(
    "--sort", type=click.Choice(ORDERS), default="name", show_default=True, help="What the VMs are sorted by."
)
@click.option("--once", is_flag=True, help="Print one screen, as plain text into a pipe, and end.")
@click.pass_obj
def top(invocation: Invocation, names: tuple[str, ...], interval: float, sort: str, once: bool) -> None:
    import os
    import sys

    if not once and not (on_terminal() and sys.stdin.isatty() and os.environ.get("TERM") != "dumb"):
        raise click.UsageError(
            "there is no terminal that could show a live screen: print one with --once, "
            "or have numbers from: va-host stats --json --interval 1"
        )
    from ..frontend.top.live import run_live, run_once
    from ..frontend.top.watcher import Watch

    watch = Watch(invocation.runtime, names, interval)
    if once:
        run_once(watch, sort)
    else:
        run_live(watch, sort)


COMMANDS = (stats, top)
