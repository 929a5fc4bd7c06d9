"""Commands that freeze and thaw the guest's file systems."""

from __future__ import annotations

from typing import Any

import click

from virtagent_protocol.errors import VirtagentError

from ..commands import COMMANDS as TABLE
from ..freezing import DURATION, LEASE, TIMEOUT
from ..frontend.output import put_error, put_fields, put_json
from .common import Invocation, examples, json_option, timeout_option, vm_argument

_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command(
    help=f"""{TABLE["va_freeze"].help}

    It thaws by 'va-host thaw', after the duration, or when the lease was not renewed: which va-host does as
    long as it runs and reaches the guest.""",
    epilog=examples("va-host freeze demo --duration 30 && make-snapshot; va-host thaw demo"),
)
@vm_argument()
@click.option(
    "--lease",
    type=_SECONDS,
    metavar="SECONDS",
    default=LEASE,
    show_default=True,
    help="How long it stays frozen without hearing from va-host.",
)
@click.option(
    "--duration",
    type=_SECONDS,
    metavar="SECONDS",
    default=DURATION,
    show_default=True,
    help="How long it stays frozen at all.",
)
@click.option(
    "--mountpoint",
    "mountpoints",
    metavar="PATH",
    multiple=True,
    help="Freeze the file system that is mounted here, and others only if named, too.",
)
@timeout_option(TIMEOUT, "How long to wait until it is frozen; it is thawed again if that is not enough.")
@json_option("one JSON object")
@click.pass_obj
def freeze(
    invocation: Invocation,
    name: str | None,
    lease: float,
    duration: float,
    mountpoints: tuple[str, ...],
    timeout: float,
) -> None:
    for path in mountpoints:
        if ":" in path:
            raise click.UsageError(f"a mount point with a colon cannot be named: {path}")
    arguments: dict[str, object] = {"lease": lease, "duration": duration}
    if mountpoints:
        arguments["mountpoints"] = ":".join(mountpoints)
    result = _call(invocation, name, "va_freeze", arguments, timeout)
    if invocation.json:
        put_json(result)
    else:
        put_fields({**result, "mounts": " ".join(result["mounts"]), "skipped": "; ".join(result["skipped"])})


@click.command(
    help=f"""{TABLE["va_thaw"].help}

    If the freeze had ended before, the exit status is 1: what was made meanwhile is no snapshot of a guest at
    rest.""",
    epilog=examples("va-host thaw demo"),
)
@vm_argument()
@timeout_option(TIMEOUT, "How long to wait until it is thawed.")
@json_option("one JSON object")
@click.pass_obj
def thaw(invocation: Invocation, name: str | None, timeout: float) -> None:
    result = _call(invocation, name, "va_thaw", {}, timeout)
    if invocation.json:
        put_json(result)
    else:
        put_fields({**result, "failures": "; ".join(result["failures"])})
    if not result["held"]:
        put_error(VirtagentError(f"the file systems were not frozen until now: {result['why']}"))
        invocation.status = 1


def _call(
    invocation: Invocation, name: str | None, command: str, arguments: dict[str, object], timeout: float
) -> Any:
    from ..frontend.fetch import call

    with invocation.connect(name) as client:
        return call(client, command, arguments, timeout)


COMMANDS = (freeze, thaw)
