"""What a `va_*` command is: its arguments, how they are checked, and what its handler has.

The rules:

1. Arguments are checked here, in QEMU's words, before a handler sees them: unexpected, missing, wrong
   type, not one of the choices. A handler gets every argument, defaults filled in.
2. trio is imported where it is used, because the CLI imports the table of commands and must start at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from virtagent_protocol.errors import FailureKind, VirtagentError
from virtagent_protocol.values import Value

if TYPE_CHECKING:
    from virtagent_protocol.stream import LinkStream

    from .events.intake import GuestEvents
    from .forward.table import Forwards

Arguments = Mapping[str, Any]


class VirtualMachine(Protocol):
    """What the commands need of an attached VM."""

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the guest and return its result. Raises `VirtagentError`."""

    @property
    def forwards(self) -> Forwards:
        """Its forwarded connections."""

    @property
    def events(self) -> GuestEvents:
        """What the guest told."""

    async def renegotiate(self) -> Value:
        """Call the guest's `va.capabilities`, keep what it allows from now on, and return it."""

    async def wait_for(self, state: str) -> None:
        """Return once the link is in this state."""

    def open_stream(self) -> LinkStream:
        """Return a new stream, to be named in a call of the guest.

        Raises:
            VirtagentError: there is no session, or it has too many; the message says which.
        """

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

    async def events_sent(self) -> None:
        """Return when no event waits for this client to read it."""

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
        type: ``string``, ``integer``, ``string or integer``, ``number``, ``boolean``, ``array`` (of
            strings) or ``object`` (the words of QEMU's error messages).
        help: one line.
        optional: it may be left out; its value is then *default*.
        choices: all strings that are accepted; empty: any.
        minimum: the least number that is accepted.
    """

    name: str
    type: str
    help: str
    optional: bool = False
    default: Any = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None

    def check(self, value: object) -> None:
        """Check a value that was given for this argument.

        Raises:
            InvalidArguments: wrong type, not a choice, or too small.
        """
        # bool is a subclass of int in Python and another type in JSON.
        is_boolean = isinstance(value, bool)
        if is_boolean != (self.type == "boolean") or not isinstance(value, _PYTHON_TYPES[self.type]):
            raise InvalidArguments(f"Invalid parameter type for '{self.name}', expected: {self.type}")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise InvalidArguments(f"Invalid parameter type for '{self.name}', expected: array of strings")
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
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "string or integer": (str, int),
}


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
        session: whether the agent of a user's session can be asked in place of the guest's: not what va-host
            answers by itself, nor what is the whole machine's business. It gives the command an argument more
            (`sessions`).
    """

    name: str
    help: str
    returns: str
    example: str
    handler: Handler
    arguments: tuple[Argument, ...] = ()
    session: bool = True

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
