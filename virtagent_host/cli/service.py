"""Commands about the service itself: attach and launch run it, detach ends it, list finds it."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path
from typing import Any

import click

from virtagent_protocol.address import Address, AddressError, parse_address
from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.limits import EXECUTE_MAX, SEND_MAX, Settings

from ..frontend.output import put_coloured, put_json, state_colour
from ..runtime import BadName, check_name
from .common import (
    Decorated,
    Invocation,
    VmName,
    configuration,
    examples,
    json_option,
    timeout_option,
    vm_argument,
)

#: Seconds for a service to let go of QEMU: it unplugs nothing, so this is closing a few sockets.
DETACH_TIMEOUT = 10.0
#: Seconds for each VM of `list`: its va-host answers by itself, and one that hangs must not hide the others.
LIST_TIMEOUT = 2.0

_UNIX = "unix:"
#: The id of a service.
_SERVICE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


def _services(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> dict[str, Address]:
    services: dict[str, Address] = {}
    for word in words:
        name, equals, address = word.partition("=")
        if not equals or not _SERVICE.fullmatch(name):
            raise click.BadParameter(
                f"{word!r}: expected ID=ADDRESS, where ID is of letters, digits, '.', '_' and '-'"
            )
        if name in services:
            raise click.BadParameter(f"service '{name}' is given twice")
        try:
            services[name] = parse_address(address)
        except AddressError as error:
            raise click.BadParameter(f"service '{name}': {error}") from None
    return services


def _link_options(command: Decorated) -> Decorated:
    for option in (
        click.option(
            "--ports",
            type=click.Choice(["one", "two"]),
            default="one",
            show_default=True,
            help="One port for calls in both directions, or one for each (the agent then needs --ports two).",
        ),
        click.option(
            "--execute-max",
            type=click.IntRange(min=1),
            default=EXECUTE_MAX,
            show_default=True,
            help="How many of the guest's calls are executed at a time.",
        ),
        click.option(
            "--send-max",
            type=click.IntRange(min=1),
            default=SEND_MAX,
            show_default=True,
            help="How many calls to the guest are in flight at a time; others wait.",
        ),
        click.option(
            "--service",
            "services",
            multiple=True,
            callback=_services,
            metavar="ID=ADDRESS",
            help="Let programs in the guest connect to this address of the host (tcp:HOST:PORT or "
            "unix:/PATH) as service ID; may be repeated. They reach no other.",
        ),
        click.option(
            "--services-dir",
            metavar="DIR",
            type=click.Path(),
            help="Where the services are that programs in the guest may call (va-guest call), and the policy "
            "which says who may. Default: /etc/virtagent/services for root, else virtagent/services in "
            "$XDG_CONFIG_HOME. SIGHUP loads the policy again.",
        ),
        click.option(
            "--set-clock",
            type=click.Choice(["never", "after-restore"]),
            default="after-restore",
            show_default=True,
            help="Whether to set the guest's clock to the host's when the guest runs again after a pause, "
            "sleep, restore or migration and its clock is wrong. The guest's policy may refuse "
            "(guest-set-time).",
        ),
    ):
        command = option(command)
    return command


@click.command(
    epilog=examples(
        "va-host attach --qmp /run/vm/demo.sock --name demo",
        "va-host attach --channel unix:/run/vm/channel.sock --name demo",
        "va-host attach --channel unix:/run/vm/qga.sock --agent qga --name demo",
    )
)
# Whether it may be used is for `open_qmp` to say, by kind and remedy, and not for click.
@click.option(
    "--qmp",
    metavar="SOCKET",
    type=click.Path(path_type=Path, readable=False),
    help="QEMU's QMP socket.",
)
@click.option(
    "--channel",
    metavar="unix:PATH",
    help="Without QMP: the unix socket of a channel that libvirt or another tool made.",
)
@click.option(
    "--retry",
    is_flag=True,
    help="Wait for a QEMU that is not there yet, or that has ended, instead of ending too. "
    "The bridge is served meanwhile, in state no-port.",
)
@click.option(
    "--agent",
    type=click.Choice(["virtagent", "qga"]),
    default="virtagent",
    show_default=True,
    help="qga: the guest runs QEMU's own guest agent (org.qemu.guest_agent.0) and no other. "
    "What that agent can do works.",
)
@click.option(
    "--qga",
    metavar="SOCKET",
    type=click.Path(path_type=Path, readable=False),
    help="Also serve clients of QEMU's guest agent, on this unix socket.",
)
@click.option(
    "--name",
    type=VmName(),
    metavar="NAME",
    help="The VM's name from now on; default: the socket's file name.",
)
@_link_options
@click.pass_obj
def attach(
    invocation: Invocation,
    qmp: Path | None,
    channel: str | None,
    retry: bool,
    agent: str,
    qga: Path | None,
    name: str | None,
    ports: str,
    send_max: int,
    execute_max: int,
    services: dict[str, Address],
    services_dir: str | None,
    set_clock: str,
) -> None:
    """Attach to a running QEMU and serve its bridge.

    Finds or plugs in the virtagent port, keeps the link to the guest's agent, and serves the QMP socket
    NAME.qmp in the runtime directory. Runs in the foreground until `va-host detach`, SIGTERM or QEMU's end.
    """
    if (qmp is None) == (channel is None):
        raise click.UsageError("give one of --qmp SOCKET and --channel unix:PATH")
    if channel is not None and not channel.startswith(_UNIX):
        raise click.BadParameter("only unix:PATH is known", param_hint="--channel")
    if retry and channel is not None:
        raise click.UsageError("--retry goes with --qmp: a channel without QMP is waited for in any case")
    if channel is not None and ports == "two":
        raise click.UsageError("--ports two needs --qmp: a channel is one port")
    if agent == "qga" and ports == "two":
        raise click.UsageError("--ports two is for virtagent's agent: QEMU's has one port")
    channel_path = None if channel is None else Path(channel.removeprefix(_UNIX))

    from ..options import Agent, AttachOptions, Ports, SetClock
    from ..service.attach import attach_main

    with configuration(invocation):
        attach_main(
            AttachOptions(
                name=name or _name_of(qmp or channel_path),
                runtime=invocation.runtime,
                qmp=qmp,
                channel=channel_path,
                retry=retry,
                agent=Agent(agent),
                qga=qga,
                ports=Ports(ports),
                settings=Settings(send_max=send_max, execute_max=execute_max),
                services=services,
                services_dir=services_dir,
                set_clock=SetClock(set_clock),
                verbose=invocation.verbose,
            )
        )


@click.command(
    # What follows is QEMU's, options included; everything of ours comes before it.
    context_settings={"allow_interspersed_args": False},
    epilog=examples("va-host launch --name demo -- qemu-system-x86_64 -m 1G -drive file=demo.img"),
)
@click.option(
    "--name", type=VmName(), metavar="NAME", help="The VM's name; default: that of QEMU's own -name option."
)
@_link_options
@click.argument("argv", nargs=-1, required=True, metavar="-- QEMU [ARGUMENT]...")
@click.pass_obj
def launch(
    invocation: Invocation,
    name: str | None,
    argv: tuple[str, ...],
    ports: str,
    send_max: int,
    execute_max: int,
    services: dict[str, Address],
    services_dir: str | None,
    set_clock: str,
) -> None:
    """Start QEMU and attach.

    Adds the virtagent devices to the command line, and serves the bridge as attach does.

    SIGTERM shuts the guest down: by its agent, else by ACPI, else by ending QEMU.
    """
    from ..options import LaunchOptions, Ports, SetClock
    from ..service.launch import launch_main

    with configuration(invocation):
        launch_main(
            LaunchOptions(
                name=name or _name_in(argv),
                runtime=invocation.runtime,
                argv=argv,
                ports=Ports(ports),
                settings=Settings(send_max=send_max, execute_max=execute_max),
                services=services,
                services_dir=services_dir,
                set_clock=SetClock(set_clock),
                verbose=invocation.verbose,
            )
        )


@click.command(epilog=examples("va-host detach demo"))
@vm_argument()
@timeout_option(DETACH_TIMEOUT, "How long to wait until va-host has let go.")
@click.pass_obj
def detach(invocation: Invocation, name: str | None, timeout: float) -> None:
    """End the service for a VM; QEMU and the guest run on.

    Returns when va-host has closed its bridge.
    """
    from ..frontend.client import ConnectionEnded

    # The end of the connection is what is awaited, and it may come before the answer.
    with invocation.connect(name) as client, contextlib.suppress(ConnectionEnded):
        client.execute("va_detach", timeout=timeout)
        for _event in client.events(timeout=timeout):
            pass


@click.command("list", epilog=examples("va-host list --json"))
@json_option("one JSON array of objects: name and the members of its status, or error")
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List the attached VMs and the state of their links."""
    runtime = invocation.runtime
    found = [_look_at(invocation, name) for name in runtime.attached()]
    if invocation.json:
        put_json(found)
        return
    width = max((len(vm["name"]) for vm in found), default=0)
    for vm in found:
        state = vm.get("state", "unknown")
        reason = vm.get("error", vm.get("reason", ""))
        put_coloured([f"{vm['name']:{width}}  ", (f"{state:11}", state_colour(state)), f"  {reason}"])
    if not found:
        click.echo(f"no VM is attached in {runtime.path}", err=True)


def _look_at(invocation: Invocation, name: str) -> dict[str, Any]:
    from ..frontend.client import VmClient

    try:
        with VmClient.connect(invocation.runtime, name, timeout=LIST_TIMEOUT) as client:
            return {"name": name, **client.execute("va_status", timeout=LIST_TIMEOUT)}
    except VirtagentError as error:
        return {"name": name, "error": f"{error.kind.value}: {error}"}


def _name_of(socket: Path | None) -> str:
    """Return the VM's name that a socket's file name gives: ``/run/vm/demo.sock`` → ``demo``."""
    return _derived(socket.name.partition(".")[0] if socket else "")


def _name_in(argv: tuple[str, ...]) -> str:
    """Return the VM's name in a QEMU command line: ``-name demo`` or ``-name guest=demo,…``."""
    for option, value in itertools.pairwise(argv):
        if option in ("-name", "--name"):
            return _derived(value.partition(",")[0].removeprefix("guest="))
    return _derived("")


def _derived(name: str) -> str:
    try:
        return check_name(name)
    except BadName:
        raise click.UsageError("give the VM a name with --name NAME") from None


COMMANDS = (attach, launch, detach, list_)
