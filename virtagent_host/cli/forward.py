"""Commands that join programs on the host and programs in the guest: forward, connect."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import click

from virtagent_protocol.address import AddressError, parse_address

from ..forward.spec import Forward, parse_forward
from ..forwarding import CONNECT_TIMEOUT
from ..frontend.output import PROGRAM, put, put_json
from .common import Invocation, VmName, attached_names, examples, json_option, timeout_option, vm_argument

#: What a shell reports for a program ended by SIGTERM.
_EXIT_TERMINATED = 128 + signal.SIGTERM


def _parse(text: str, ctx: click.Context, param: click.Parameter | None = None) -> Forward:
    try:
        return parse_forward(text)
    except AddressError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _forwards(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> list[Forward]:
    return [_parse(word, ctx, param) for word in words]


def _name_and_forwards(
    ctx: click.Context, param: click.Parameter, words: tuple[str, ...]
) -> tuple[str | None, list[Forward]]:
    """The first word is NAME unless it has a colon, which no name has."""
    name = None
    if words and ":" not in words[0]:
        name, words = VmName().convert(words[0], param, ctx), words[1:]
    return name, [_parse(word, ctx) for word in words]


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in attached_names(ctx) if name.startswith(incomplete)]


@click.command(
    epilog=examples(
        "va-host forward demo -L 8080:127.0.0.1:80",
        "va-host forward demo -R 5432:db.example.org:5432 -L /tmp/docker.sock:/run/docker.sock",
    )
)
@click.argument(
    "words",
    nargs=-1,
    metavar="[NAME] [LOCAL:REMOTE]...",
    callback=_name_and_forwards,
    shell_complete=_complete,
)
@click.option(
    "-L",
    "local",
    multiple=True,
    metavar="LOCAL:REMOTE",
    callback=_forwards,
    help="Listen here; pass connections to REMOTE, as the guest sees it. What stands without -L or -R is "
    "this, too.",
)
@click.option(
    "-R",
    "remote",
    multiple=True,
    metavar="REMOTE:LOCAL",
    callback=_forwards,
    help="Listen in the guest; pass connections to LOCAL, as this machine sees it.",
)
@json_option("one JSON object a line: what is forwarded, and what becomes of each connection")
@click.pass_obj
def forward(
    invocation: Invocation,
    words: tuple[str | None, list[Forward]],
    local: list[Forward],
    remote: list[Forward],
) -> None:
    """Forward ports and unix sockets between the host and the guest, as ssh does.

    The first part of a forward is [BIND:]PORT or /PATH, the second HOST:PORT or /PATH. Without BIND, only
    programs of the machine that listens can connect; * is for all. The port 0 is any that is free.

    Prints what it forwards, and runs until Ctrl-C, or until va-host ends. A guest that is rebooted meanwhile
    is reached again when it is ready.
    """
    from ..frontend.forwarder import Forwarder

    name, bare = words
    local = [*bare, *local]
    if not local and not remote:
        raise click.UsageError("say what to forward: -L LOCAL:REMOTE or -R REMOTE:LOCAL")
    vm = invocation.choose(name)
    # As Ctrl-C: what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_EXIT_TERMINATED))

    def report(event: str, data: dict[str, Any]) -> None:
        if invocation.json:
            put_json({"event": event, **data})
        elif event == "forwarding":
            places = ("here", f"in {vm}") if data["direction"] == "local" else (f"in {vm}", "here")
            put(f"forwarding {data['listen']} {places[0]} to {data['connect']} {places[1]}")
        elif event in ("failed", "lost"):
            _warn(event, data)
        sys.stdout.flush()

    with invocation.connect(vm) as client:
        Forwarder(client, local, remote, report).run()


def _warn(event: str, data: dict[str, Any]) -> None:
    from virtagent_protocol.text import visible_line

    which = data.get("forward") or f"connection {data.get('connection')}"
    kind = "lost, and asked for again when the guest is ready" if event == "lost" else data["kind"]
    sys.stderr.write(f"{PROGRAM}: {visible_line(which)}: {kind}: {visible_line(str(data['error']))}\n")


@click.command(
    epilog=examples(
        "ssh -o ProxyCommand='va-host connect demo tcp:127.0.0.1:22' root@demo",
        "echo | va-host connect demo /run/service.sock",
    )
)
@vm_argument()
@click.argument("address")
@timeout_option(CONNECT_TIMEOUT, "How long to wait for the guest to connect.")
@click.pass_obj
def connect(invocation: Invocation, name: str | None, address: str, timeout: float) -> None:
    """Connect stdin and stdout to ADDRESS in the guest.

    ADDRESS is tcp:HOST:PORT or unix:/PATH, as the guest sees it; HOST:PORT and /PATH will do. The end of
    stdin is passed on, and so is the end of what comes; this ends with both.
    """
    from ..frontend.client import GRACE, BridgeError, ConnectionEnded

    try:
        parse_address(address)
    except AddressError as error:
        raise click.UsageError(str(error)) from None
    if sys.stdin is None or sys.stdout is None:
        raise click.UsageError("this needs both stdin and stdout, and one of them is closed")
    with invocation.connect(name) as client:
        client.send_fd("va_stdin", sys.stdin.fileno())
        client.send_fd("va_stdout", sys.stdout.fileno())
        arguments = {"address": address, "stdin-fd": "va_stdin", "stdout-fd": "va_stdout", "timeout": timeout}
        connection = client.execute("va_connect", arguments, timeout=timeout + GRACE)["connection"]
        # As long as we had them open, too, neither side would see the other's end.
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (sys.stdin.fileno(), sys.stdout.fileno()):
            os.dup2(nothing, fd)
        for event in client.events():
            data = event.get("data", {})
            if event["event"] == "VA_DISCONNECTED" and data["connection"] == connection:
                if "error" in data:
                    raise BridgeError("GenericError", f"{data['kind']}: {data['error']}")
                return
    raise ConnectionEnded("va-host has ended, and the connection with it")


COMMANDS = (forward, connect)
