"""`va-host services`: what guests may call of this host. It asks no va-host that runs: its code judges."""

from __future__ import annotations

from typing import Any

import click

from virtagent_protocol.errors import EXIT_STATUS, FailureKind

from ..frontend.output import put, put_json
from .common import Invocation, VmName, configuration, examples, json_option

_DIRECTORY = click.option(
    "--services-dir", metavar="DIR", help="As for attach; default: the same directory as there."
)


class _Caller(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A user of the guest: UID, NAME, or UID:NAME; root has both."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        first, colon, second = value.partition(":")
        if colon and not first.isdecimal():
            self.fail("write UID, NAME or UID:NAME", param, ctx)
        name = second if colon else "" if first.isdecimal() else first
        if value in ("0", "root"):
            return 0, "root"
        return (int(first) if first.isdecimal() else None), name


@click.group(
    epilog=examples(
        "va-host services check /etc/virtagent/services/policy.toml",
        "va-host services why demo 1000:alice backup.put etc.tar.gz",
        "va-host services list",
    )
)
def services() -> None:
    """Check and explain what programs in guests may call of this host.

    The policy is policy.toml in the directory of services, and vm/NAME.toml there for one VM. The services
    are the executables in bin, and functions of Python packages (entry points of the group
    virtagent.services).
    """


@services.command(epilog=examples("va-host services check"))
@_DIRECTORY
@json_option("one JSON object: for each file, the number of its rules")
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path())
@click.pass_obj
def check(invocation: Invocation, services_dir: str | None, files: tuple[str, ...]) -> None:
    """Check files of rules.

    Without a FILE: all those of the directory of services. An error names the file and the line, and the
    exit status is 2 then.
    """
    import os

    from ..services.file import ServicesDir, read_rules

    directory = ServicesDir.find(services_dir)
    chosen = list(files) or directory.files()
    counts: dict[str, int] = {}
    for file in chosen:
        of_vm = os.path.dirname(os.path.abspath(file)) == os.path.join(directory.path, "vm")
        with configuration(invocation):
            counts[file] = len(read_rules(file, of_vm=of_vm)[0])
        if file in counts and not invocation.json:
            put(f"{file}: {counts[file]} rules")
    if invocation.json:
        put_json(counts)
    elif not chosen:
        put(f"{directory.path}: there is no policy, so nothing is allowed")


@services.command(
    epilog=examples("va-host services why demo root backup.put etc.tar.gz"),
    context_settings={"ignore_unknown_options": True},
)
@_DIRECTORY
@json_option("one JSON object: allowed, rule, file, line, why, service")
@click.argument("name", type=VmName(), metavar="NAME")
@click.argument("user", type=_Caller(), metavar="USER")
@click.argument("service")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def why(
    invocation: Invocation,
    services_dir: str | None,
    name: str,
    user: tuple[int | None, str],
    service: str,
    arguments: tuple[str, ...],
) -> None:
    """Say whether a user of a guest may call a service, and which rule decides that.

    USER is UID, NAME or UID:NAME of the guest's user. The exit status is 0 if the call is allowed, else 5.
    """
    from ..services.catalog import Unusable, find_service
    from ..services.file import ServicesDir, load_policy
    from ..services.request import Caller

    directory = ServicesDir.find(services_dir)
    uid, login = user
    # No rule has this number.
    caller = Caller(0, -1 if uid is None else uid, 0, login)
    decision = None
    with configuration(invocation):
        decision = load_policy(directory, name).decide(name, caller, service, arguments)
    if decision is None:
        return
    try:
        found = find_service(directory, service)
        what = "there is no such service" if found is None else str(found)
    except Unusable as error:
        what = str(error)
    rule = decision.rule
    if invocation.json:
        put_json(
            {
                "allowed": decision.allowed,
                "rule": None if rule is None else rule.name,
                "file": None if rule is None else rule.file,
                "line": None if rule is None else rule.line,
                "why": decision.why,
                "service": what,
            }
        )
    else:
        put(f"{service}: {'allowed' if decision.allowed else 'forbidden'}: {decision}")
        put(f"  {what}")
    invocation.status = 0 if decision.allowed else EXIT_STATUS[FailureKind.FORBIDDEN]


@services.command("list", epilog=examples("va-host services list"))
@_DIRECTORY
@json_option("one JSON object: what is behind each service's name")
@click.pass_obj
def list_(invocation: Invocation, services_dir: str | None) -> None:
    """List the services that there are on this host, and why one cannot be used.

    Who may call them is for the policy to say.
    """
    from ..services.catalog import Unusable, all_services
    from ..services.file import ServicesDir

    directory = ServicesDir.find(services_dir)
    found = list(all_services(directory))
    if invocation.json:
        usable = {name: not isinstance(what, Unusable) for name, what in found}
        put_json({name: {"usable": usable[name], "what": str(what)} for name, what in found})
        return
    width = max((len(name) for name, _ in found), default=0)
    for name, what in found:
        put(f"{name:{width}}  {what}")
    if not found:
        click.echo(f"there is no service in {directory.programs}, and no Python package offers any", err=True)


COMMANDS = (services,)
