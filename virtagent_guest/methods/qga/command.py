"""The commands of the QEMU guest agent as a table: name, arguments, handler, and where it may be called.

The rules:

1. A command is registered once, by `CommandRegistry.command`, under its name in QEMU's qga/qapi-schema.json,
   and is then reachable three ways: as the XML-RPC method ``guest.file_open`` with one struct of arguments
   (`xmlrpc_methods`), on the wire that QEMU's agent speaks (`virtagent_guest.qga`), and, since the host
   passes them through, as ``guest-file-open`` on the host's bridge.
2. Its handler is an async function. Its parameters are the schema's arguments, with underscores for dashes;
   one with a default is optional. Annotations give the types: ``str``, ``int``, ``bool``, ``list[str]``
   (each may be ``| None``), all others are ``Annotated[python type, schema type]``. Its docstring is the
   help.
3. It returns what the schema says, in values that both JSON and XML-RPC carry: dicts with the schema's
   member names, lists, int, float, str, bool; None where the schema returns nothing. No bytes.
4. It reports a failure as `QgaError`, in qemu-ga's words where it has some, and otherwise so that they
   name the thing and the remedy. An OSError that escapes becomes one, too.
5. Arguments are checked before it is called. It need not check types again, only values.
6. It never blocks: what may do so runs through `in_thread`, and may be abandoned there. What belongs to the
   agent and not to a call (open files, processes) is kept by the topic's module, with bounds stated there.
7. A parameter named ``caller`` is no argument of the schema: it gets the `Caller`. Who returns much looks
   there how much fits the reply; what was consumed and does not fit would be lost.

::

    registry = CommandRegistry()

    @registry.command("guest-file-open")
    async def file_open(path: str, mode: str = "r") -> int:
        '''Open a file in the guest, and return a handle for it.'''
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.values import Value

from .schema import BOOL, INT, STR, Argument, ArgumentError, ListOf, Type, check

_T = TypeVar("_T")
_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])

#: What annotations may name without importing it: `Value` refers to itself by its name.
NAMES = {"Value": Value}

#: Error classes of QAPI that a guest agent uses.
GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"

#: Threads for all commands but those on files, which have their own: a dead file server must not hold up
#: these. A thread that its caller has abandoned counts until it ends.
THREADS_MAX = 16
_threads = trio.CapacityLimiter(THREADS_MAX)


class QgaError(Fault):
    """A command failed: what qemu-ga gives as ``{"error": {"class": …, "desc": …}}``.

    Args:
        desc: one sentence for the caller.
        error_class: `GENERIC_ERROR` or `COMMAND_NOT_FOUND`.
        code: what the XML-RPC call is answered with.
    """

    def __init__(
        self, desc: str, error_class: str = GENERIC_ERROR, code: FaultCode = FaultCode.FAILED
    ) -> None:
        super().__init__(code, desc)
        self.desc = desc
        self.error_class = error_class


@dataclass(frozen=True)
class Caller:
    """What a handler may have to know of the way it was called.

    Attributes:
        reply_max: bytes that the text in the reply may have; None: whatever it needs.
    """

    reply_max: int | None = None


@dataclass
class FreezeState:
    """Whether the guest's file systems are frozen.

    Whoever freezes and thaws sets `frozen`; while it is set, commands that are not safe are refused, on
    each of the ways to call them.
    """

    frozen: bool = False


#: The state of this guest.
FREEZE = FreezeState()


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: such as ``guest-file-open``.
        handler: see the rules.
        arguments: in the schema's order; those with dashes have dashes.
        safe: whether it may be called while file systems are frozen.
        success_response: whether qemu-ga's wire gets an answer when it succeeded. Errors are always answered.
            By XML-RPC every call is answered.
        disabled: why there is no such command in this guest; empty: there is.
        inline: whether the handler waits for nothing. Then slow calls never hold it up: by XML-RPC it is
            answered outside the link's slots.
        help: of the handler's docstring.
        takes_caller: whether the handler has the parameter ``caller``.
        urgent: whether slow calls must never hold it up, although it waits: they may be waiting for it.
    """

    name: str
    handler: Callable[..., Awaitable[Any]]
    arguments: tuple[Argument, ...]
    safe: bool
    success_response: bool
    disabled: str
    inline: bool
    help: str
    takes_caller: bool
    urgent: bool = False

    @property
    def method_name(self) -> str:
        """The name as an XML-RPC method: ``guest.file_open``."""
        return "guest." + self.name.removeprefix("guest-").replace("-", "_")

    @property
    def enabled(self) -> bool:
        """Whether a call would be let through now, as guest-info tells it."""
        return not self.disabled and (self.safe or not FREEZE.frozen)

    async def run(self, arguments: Mapping[str, Value], caller: Caller | None = None) -> Any:
        """Check the arguments and run the command.

        Args:
            arguments: name → value, as sent.
            caller: the way it was called; None: one without limits.

        Returns:
            What the schema says; None where that is nothing (qemu-ga's wire then has an empty object).

        Raises:
            QgaError: the command is not to be had now, an argument is wrong, or it failed.
        """
        self._check_enabled()
        try:
            check(arguments, self.arguments)
        except ArgumentError as error:
            raise QgaError(str(error), code=FaultCode.INVALID_PARAMS) from None
        keywords: dict[str, Any] = {name.replace("-", "_"): value for name, value in arguments.items()}
        if self.takes_caller:
            keywords["caller"] = caller or Caller()
        try:
            return await self.handler(**keywords)
        except OSError as error:
            raise QgaError(f"{self.name} failed: {reason(error)}") from error

    def _check_enabled(self) -> None:
        # The words of qemu-ga; by XML-RPC the code tells "not here" from "not now".
        if self.disabled:
            raise QgaError(
                f"Command {self.name} has been disabled: {self.disabled}",
                COMMAND_NOT_FOUND,
                FaultCode.METHOD_NOT_FOUND,
            )
        if not self.enabled:
            raise QgaError(
                f"Command {self.name} has been disabled: the agent is in frozen state",
                COMMAND_NOT_FOUND,
                FaultCode.NOT_READY,
            )


class CommandRegistry:
    """The commands of one topic, by name."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}

    def command(
        self,
        name: str,
        *,
        safe: bool = False,
        success_response: bool = True,
        disabled: str = "",
        inline: bool = False,
        urgent: bool = False,
    ) -> Callable[[_Handler], _Handler]:
        """Return a decorator that registers a handler under *name* and returns it unchanged.

        Args:
            name: in the schema.
            safe, success_response, disabled, inline, urgent: as in `Command`.

        Raises:
            ValueError: the name is taken, or an annotation means no type of the schema.
        """

        def register(handler: _Handler) -> _Handler:
            if name in self._commands:
                raise ValueError(f"command {name} is registered twice")
            hints = typing.get_type_hints(handler, localns=NAMES, include_extras=True)
            parameters = inspect.signature(handler).parameters
            self._commands[name] = Command(
                name,
                handler,
                tuple(
                    Argument(
                        parameter.name.replace("_", "-"),
                        _schema_type(hints[parameter.name], name),
                        parameter.default is not parameter.empty,
                    )
                    for parameter in parameters.values()
                    if parameter.name != "caller"
                ),
                safe,
                success_response,
                disabled,
                inline,
                inspect.getdoc(handler) or "",
                "caller" in parameters,
                urgent,
            )
            return handler

        return register

    def __iter__(self) -> Iterator[Command]:
        return iter(self._commands.values())


async def in_thread(
    function: Callable[..., _T], *arguments: Any, limiter: trio.CapacityLimiter | None = None
) -> _T:
    """Run what may block in a thread. A call that is cancelled leaves the thread to itself.

    Args:
        function: called as ``function(*arguments)``.
        limiter: whose threads; None: those that all commands share.
    """
    return await trio.to_thread.run_sync(
        function, *arguments, abandon_on_cancel=True, limiter=limiter or _threads
    )


def reason(error: OSError) -> str:
    """Return what the system says of an error, without the path: ``No such file or directory``."""
    return error.strerror or str(error)


_PLAIN_TYPES: dict[object, Type] = {str: STR, int: INT, bool: BOOL}


def _schema_type(annotation: Any, command: str) -> Type:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        # "| None" is for a default; that nothing was sent is told by its absence.
        (annotation,) = (option for option in typing.get_args(annotation) if option is not types.NoneType)
        origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        schema_type: Type = typing.get_args(annotation)[1]
        return schema_type
    if origin is list:
        return ListOf(_schema_type(typing.get_args(annotation)[0], command))
    try:
        return _PLAIN_TYPES[annotation]
    except KeyError:
        raise ValueError(f"command {command}: the schema has no type for {annotation!r}") from None
