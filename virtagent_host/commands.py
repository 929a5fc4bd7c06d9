"""The `va_*` commands: one table of name, arguments, help and handler.

The bridge serves it, `query-commands` lists it, and the help and completion of the CLI and of the
monitor come from it, so they cannot disagree.

The rules:

1. A command and its arguments are what `command` says.
2. A command with an argument ``timeout`` ends by then: what it waits for is cancelled, on both ends. If it is
   given a ``deadline``, it keeps that by itself.
3. A handler returns what JSON can carry. What a guest sent is untrusted: its shape is checked.
4. A command with an argument ``session`` is given a VM whose calls go there (`sessions`); it need not know.
5. trio is imported where it is used, because the CLI imports this table and must start at once.
"""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from functools import partial
from typing import Any

from virtagent_protocol.errors import CallTimeout, RemoteProtocolError
from virtagent_protocol.linkstate import LinkState
from virtagent_protocol.values import Struct, Value, as_struct, member, type_name

from . import clipboard, execution, files, forwarding, freezing, sessions
from .command import Argument as Argument
from .command import Arguments, BoundCommand, VirtualMachine
from .command import Client as Client
from .command import Command as Command
from .command import InvalidArguments as InvalidArguments
from .events import command as events
from .extensions import listing
from .stats import commands as stats

#: Seconds until a call to the guest is given up: the original's client timeout.
CALL_TIMEOUT = 5.0
#: Seconds `va_wait` waits: a guest boots in 25 s under TCG, and twice that on a busy machine.
WAIT_TIMEOUT = 60.0

SHUTDOWN_MODES = ("halt", "powerdown", "reboot")
#: How `va_viewfile` puts bytes into JSON.
FORMATS = ("utf8", "base64")
LINK_STATES = tuple(state.value for state in LinkState)


def bind(vm: VirtualMachine) -> dict[str, BoundCommand]:
    """Return the table for one VM: name → ``async f(arguments, client)``, as the bridge calls it.

    The functions return what JSON can carry and raise `VirtagentError` only.
    """
    return {command.name: partial(run, command, vm) for command in COMMANDS.values()}


async def run(command: Command, vm: VirtualMachine, given: Arguments, client: Client) -> object:
    """Run a command for a client, its arguments checked and its deadline kept."""
    arguments = command.complete(given)
    if arguments.get("session") is not None:
        vm = sessions.InSession(vm, arguments["session"])
    timeout = arguments.get("timeout")
    if timeout is None or arguments.get("deadline") is not None:
        return await command.handler(vm, arguments, client)

    import trio

    with trio.move_on_after(timeout) as scope:
        return await command.handler(vm, arguments, client)
    assert scope.cancelled_caught
    status = vm.status()
    reason = f": {status['reason']}" if status.get("reason") else ""
    raise CallTimeout(
        f"{command.name} was not done within {timeout:.3g} s (the link is '{status.get('state')}'{reason})"
    )


async def _ping(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    start = time.perf_counter()
    await vm.call("va.ping")
    return {"status": "success", "time_us": round((time.perf_counter() - start) * 1e6)}


async def _capabilities(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    answer = as_struct(await vm.renegotiate(), "the answer to va.capabilities")
    # Only an agent with a policy in force has anything to say of it.
    forbidden = {"forbidden": sorted(_strings(answer, "forbidden"))} if "forbidden" in answer else {}
    return {
        **{name: member(answer, name, str) for name in ("agent", "version", "protocol")},
        "methods": sorted(_strings(answer, "methods")),
        **forbidden,
    }


async def _shutdown(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    mode, deadline = arguments["shutdown_mode"], arguments["deadline"]
    if deadline is None:
        await vm.call("va.shutdown", mode)
        return {}
    if mode != "powerdown":
        raise InvalidArguments(f"Parameter 'deadline' goes with 'powerdown' only: ACPI knows no {mode}")
    return await vm.shut_down(deadline)


async def _status(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    return vm.status()


async def _wait(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    await vm.wait_for(arguments["until"])
    return vm.status()


async def _viewfile(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    path, count = arguments["filepath"], arguments["count"]
    window = [] if count is None else [count]
    data = _bytes(await vm.call("va.getfile", path, arguments["offset"], *window), "va.getfile")
    # Without a count the guest sends all that is left, or an error.
    eof = count is None or len(data) < count
    return {**_content(data, arguments["format"], path), "eof": eof}


async def _viewdmesg(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    data = _bytes(await vm.call("va.getdmesg"), "va.getdmesg")
    return _content(data, arguments["format"], "the kernel's log")


async def _detach(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    await vm.detach()
    return {}


def _content(data: bytes, form: str, what: str) -> dict[str, Any]:
    if form == "base64":
        content = base64.b64encode(data).decode("ascii")
    else:
        try:
            content = data.decode()
        except UnicodeDecodeError as error:
            raise InvalidArguments(
                f"{what} is not UTF-8 (byte {error.start} of {len(data)}): ask for format base64"
            ) from None
    return {"content": content, "format": form, "count": len(data)}


def _bytes(value: Value, method: str) -> bytes:
    if not isinstance(value, bytes):
        raise RemoteProtocolError(f"the answer to {method} must be base64, not {type_name(value)}")
    return value


def _strings(struct: Struct, name: str) -> list[str]:
    items = member(struct, name, list)
    if not all(isinstance(item, str) for item in items):
        raise RemoteProtocolError(f"member '{name}' must hold strings only")
    return [str(item) for item in items]


_TIMEOUT = Argument(
    "timeout", "number", "seconds to wait for the answer", optional=True, default=CALL_TIMEOUT, minimum=0
)
_FREEZE_TIMEOUT = replace(_TIMEOUT, default=freezing.TIMEOUT)
_FORMAT = Argument(
    "format", "string", "how bytes become JSON", optional=True, default="utf8", choices=FORMATS
)

COMMANDS: dict[str, Command] = {
    command.name: sessions.with_session(command)
    for command in (
        Command(
            "va_ping",
            "Ask the guest's agent for a sign of life.",
            "{status: 'success', time_us: the round trip in microseconds}",
            "va_ping",
            _ping,
            (_TIMEOUT,),
        ),
        Command(
            "va_capabilities",
            "Fetch the version and methods of the guest's agent anew.",
            "{agent, version, protocol, methods: [name…], forbidden: [name…] if the guest has a policy}",
            "va_capabilities",
            _capabilities,
            (_TIMEOUT,),
        ),
        Command(
            "va_shutdown",
            "Shut the guest down by its agent; with a deadline by what works until then: agent, ACPI, quit.",
            "{}; with a deadline {by: 'agent', 'acpi' or 'quit', seconds, steps: [{means, result, seconds}]}",
            "va_shutdown powerdown",
            _shutdown,
            (
                Argument("shutdown_mode", "string", "what to end in", choices=SHUTDOWN_MODES),
                _TIMEOUT,
                Argument(
                    "deadline",
                    "number",
                    "seconds until QEMU has ended, by agent, ACPI or quit",
                    optional=True,
                    minimum=1,
                ),
            ),
            session=False,
        ),
        Command(
            "va_viewfile",
            "Read a file of the guest.",
            "{content, format, count: bytes read, eof: whether the file ends there}",
            "va_viewfile /proc/meminfo",
            _viewfile,
            (
                Argument("filepath", "string", "path in the guest"),
                _FORMAT,
                Argument("offset", "integer", "first byte to read", optional=True, default=0, minimum=0),
                Argument("count", "integer", "bytes to read, else all that follow", optional=True, minimum=1),
                _TIMEOUT,
            ),
        ),
        Command(
            "va_viewdmesg",
            "Read the end of the guest kernel's log.",
            "{content, format, count: bytes read}",
            "va_viewdmesg",
            _viewdmesg,
            (_FORMAT, _TIMEOUT),
            session=False,
        ),
        Command(
            "va_freeze",
            "Freeze the guest's file systems for a snapshot; they thaw by themselves if nobody thaws them.",
            "{frozen: how many, mounts: [path…], skipped: [why…]}",
            "va_freeze",
            freezing.freeze,
            (
                Argument(
                    "lease",
                    "number",
                    "seconds without a word from va-host after which it thaws",
                    optional=True,
                    default=freezing.LEASE,
                    minimum=0,
                ),
                Argument(
                    "duration",
                    "number",
                    "seconds after which it thaws in any case",
                    optional=True,
                    default=freezing.DURATION,
                    minimum=0,
                ),
                Argument(
                    "mountpoints", "string", "which to freeze, with colons between; else all", optional=True
                ),
                _FREEZE_TIMEOUT,
            ),
            session=False,
        ),
        Command(
            "va_thaw",
            "Thaw the guest's file systems.",
            "{thawed: how many, held: whether they were frozen until now, why, failures: [of hooks…]}",
            "va_thaw",
            freezing.thaw,
            (_FREEZE_TIMEOUT,),
            session=False,
        ),
        Command(
            "va_status",
            "Say in which state the link is, since when, and why.",
            "{state, reason, …}",
            "va_status",
            _status,
            session=False,
        ),
        Command(
            "va_wait",
            "Wait until the link is in a state.",
            "as va_status",
            "va_wait ready",
            _wait,
            (
                Argument("until", "string", "the state to wait for", choices=LINK_STATES),
                Argument(
                    "timeout", "number", "seconds to wait", optional=True, default=WAIT_TIMEOUT, minimum=0
                ),
            ),
            session=False,
        ),
        Command(
            "va_detach",
            "End the service for this VM; QEMU and the guest run on.",
            "{}",
            "va_detach",
            _detach,
            session=False,
        ),
        *execution.COMMANDS,
        *files.COMMANDS,
        *forwarding.COMMANDS,
        *events.COMMANDS,
        *stats.COMMANDS,
        *listing.COMMANDS,
        *sessions.COMMANDS,
        *clipboard.COMMANDS,
    )
}
