"""The `va_*` commands: one table of name, arguments, help and handler.

The bridge serves it, `query-commands` lists it, and the help and completion of the CLI and of the
monitor come from it, so they cannot disagree.

The rules:

1. Arguments are checked here, in QEMU's words, before a handler sees them: unexpected, missing, wrong
   type, not one of the choices. A handler gets every argument, defaults filled in.
2. A command with an argument ``timeout`` ends by then: what it waits for is cancelled, on both ends. If it is
   given a ``deadline``, it keeps that by itself.
3. A handler returns what JSON can carry. What a guest sent is untrusted: its shape is checked.
4. trio is imported where it is used, because the CLI imports this table and must start at once.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from virtagent_protocol.errors import CallTimeout, FailureKind, RemoteProtocolError, VirtagentError
from virtagent_protocol.linkstate import LinkState
from virtagent_protocol.values import Struct, Value, as_struct, member, type_name

from . import freezing

Arguments = Mapping[str, Any]

#: Seconds until a call to the guest is given up: the original's client timeout.
CALL_TIMEOUT = 5.0
#: Seconds `va_wait` waits: a guest boots in 25 s under TCG, and twice that on a busy machine.
WAIT_TIMEOUT = 60.0

SHUTDOWN_MODES = ("halt", "powerdown", "reboot")
#: How `va_viewfile` puts bytes into JSON.
FORMATS = ("utf8", "base64")
LINK_STATES = tuple(state.value for state in LinkState)


class VirtualMachine(Protocol):
    """What the commands need of an attached VM."""

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the guest and return its result. Raises `VirtagentError`."""

    async def renegotiate(self) -> Value:
        """Call the guest's `va.capabilities`, keep what it allows from now on, and return it."""

    async def wait_for(self, state: str) -> None:
        """Return once the link is in this state."""

    def status(self) -> dict[str, Any]:
        """Return what `va_status` answers: ``state`` (one of `LINK_STATES`), ``reason`` and more."""

    async def shut_down(self, deadline: float) -> dict[str, Any]:
        """Shut the VM down by agent, ACPI or QEMU's quit; return ``by``, ``seconds`` and ``steps``."""

    async def detach(self) -> None:
        """Begin to end the service for this VM, and return so that the answer can go out."""


class Client(Protocol):
    """What the commands need of the one who gives them: a client of the bridge."""

    def take_fd(self, name: str) -> int:
        """Return the file descriptor that came with ``getfd`` under this name; it is the taker's to close.

        Raises:
            InvalidArguments: there is none.
        """

    def emit(self, name: str, data: dict[str, object]) -> None:
        """Send an event to this client alone."""

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run ``await function(*args)`` as a task that is cancelled when the client leaves."""


Handler = Callable[[VirtualMachine, Arguments, Client], Awaitable[object]]
BoundCommand = Callable[[Arguments, Client], Awaitable[object]]


class InvalidArguments(VirtagentError):
    """The arguments of a command do not fit its table entry."""

    kind = FailureKind.REFUSED


@dataclass(frozen=True)
class Argument:
    """One argument of a command.

    Attributes:
        name: as in the QMP command.
        type: ``string``, ``integer`` or ``number`` (the words of QEMU's error messages).
        help: one line.
        optional: it may be left out; its value is then *default*.
        choices: all strings that are accepted; empty: any.
        minimum: the least number that is accepted.
    """

    name: str
    type: str
    help: str
    optional: bool = False
    default: str | int | float | None = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None

    def check(self, value: object) -> None:
        """Check a value that was given for this argument.

        Raises:
            InvalidArguments: wrong type, not a choice, or too small.
        """
        # bool is a subclass of int in Python and another type in JSON.
        if isinstance(value, bool) or not isinstance(value, _PYTHON_TYPES[self.type]):
            raise InvalidArguments(f"Invalid parameter type for '{self.name}', expected: {self.type}")
        if self.choices and value not in self.choices:
            choices = ", ".join(self.choices)
            raise InvalidArguments(
                f"Parameter '{self.name}' does not accept value '{value}', only: {choices}"
            )
        if isinstance(value, (int, float)) and not abs(value) <= _NUMBER_MAX:
            raise InvalidArguments(f"Parameter '{self.name}' must be a finite number below 2^63")
        if self.minimum is not None and isinstance(value, (int, float)) and value < self.minimum:
            raise InvalidArguments(f"Parameter '{self.name}' must be at least {self.minimum:g}")


#: A JSON integer may have 300 digits, which neither a clock nor XML-RPC takes.
_NUMBER_MAX = 2**63 - 1
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float)}


@dataclass(frozen=True)
class Command:
    """One `va_*` command.

    Attributes:
        name: ``va_ping``.
        help: a line of what it does.
        returns: the shape of its result.
        example: arguments as a user of the monitor types them.
        handler: ``async handler(vm, arguments, client)``.
        arguments: in the order in which the monitor takes them.
    """

    name: str
    help: str
    returns: str
    example: str
    handler: Handler
    arguments: tuple[Argument, ...] = ()

    def argument(self, name: str) -> Argument:
        """Return the argument of that name; KeyError if there is none."""
        return {argument.name: argument for argument in self.arguments}[name]

    def complete(self, given: Arguments) -> dict[str, Any]:
        """Return *given*, checked, with the defaults of what was left out.

        Raises:
            InvalidArguments: rule 1.
        """
        known = {argument.name for argument in self.arguments}
        for name in given:
            if name not in known:
                raise InvalidArguments(f"Parameter '{name}' is unexpected")
        values = {}
        for argument in self.arguments:
            if argument.name in given:
                argument.check(given[argument.name])
            elif not argument.optional:
                raise InvalidArguments(f"Parameter '{argument.name}' is missing")
            values[argument.name] = given.get(argument.name, argument.default)
        return values


def bind(vm: VirtualMachine) -> dict[str, BoundCommand]:
    """Return the table for one VM: name → ``async f(arguments, client)``, as the bridge calls it.

    The functions return what JSON can carry and raise `VirtagentError` only.
    """
    return {command.name: partial(_run, command, vm) for command in COMMANDS.values()}


async def _run(command: Command, vm: VirtualMachine, given: Arguments, client: Client) -> object:
    arguments = command.complete(given)
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
    command.name: command
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
        ),
        Command(
            "va_thaw",
            "Thaw the guest's file systems.",
            "{thawed: how many, held: whether they were frozen until now, why, failures: [of hooks…]}",
            "va_thaw",
            freezing.thaw,
            (_FREEZE_TIMEOUT,),
        ),
        Command(
            "va_status",
            "Say in which state the link is, since when, and why.",
            "{state, reason, …}",
            "va_status",
            _status,
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
        ),
        Command(
            "va_detach",
            "End the service for this VM; QEMU and the guest run on.",
            "{}",
            "va_detach",
            _detach,
        ),
    )
}
