"""The methods that one end offers: a table of name, signature, help and handler.

Capabilities, `system.listMethods`, `system.methodSignature`, `system.methodHelp` and the check
of a call's arguments all come from this one table, so they cannot disagree.

A handler is an async function. Its first parameter is the `Call` it serves; those that follow
are the RPC's positional parameters. Their annotations are the signature, its docstring the help::

    registry = Registry()

    @registry.method("va.getfile")
    async def getfile(call: Call, path: str, offset: int = 0, count: int = -1) -> bytes:
        '''Return up to count bytes of a file, from offset on.'''
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import Fault, FaultCode
from .stream import LinkStream
from .values import XMLRPC_TYPE_NAMES, Value, type_name

_log = logging.getLogger("virtagent.rpc")

Handler = Callable[..., Awaitable[Value]]
AfterReply = Callable[[], Awaitable[None]]


class CallLink(Protocol):
    """What a call has of the link it came by."""

    def accept(self, number: int) -> LinkStream:
        """As `Streams.accept`."""

    def spawn(self, name: str, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task; what it raises is logged."""


@dataclass
class Call:
    """One received call, as its handler sees it.

    Attributes:
        method: the name it was called by.
        tag: the client tag, which both ends log.
        after_reply: functions to run once the reply has been written to the transport. They do not run
            if the call is cancelled or its session ends first: what they do is never done unannounced.
        link: the link it came by; None where there is none.
        streams: those that were accepted.
    """

    method: str
    tag: str
    after_reply: list[AfterReply] = field(default_factory=list)
    link: CallLink | None = None
    streams: list[LinkStream] = field(default_factory=list)

    def accept(self, stream: int) -> LinkStream:
        """Take up the stream that the caller has named in a parameter. It is reset if the call fails.

        Raises:
            Fault: see `Streams.accept`.
        """
        if self.link is None:
            raise Fault(FaultCode.INVALID_REQUEST, "there are no streams here")
        accepted = self.link.accept(stream)
        self.streams.append(accepted)
        return accepted

    def drop_streams(self, reason: str, since: int = 0) -> None:
        """Reset the streams that were accepted, from the one of that index on: the call has failed."""
        for stream in self.streams[since:]:
            stream.reset(reason)
        del self.streams[since:]

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run ``await function(*args)`` as a task that may outlive the call, not the link's transport."""
        assert self.link is not None
        self.link.spawn(f"{self.method} {self.tag}", function, *args)


@dataclass(frozen=True)
class Parameter:
    """One positional parameter: name, XML-RPC type (None: any), whether it may be left out, or be nil."""

    name: str
    type: str | None
    optional: bool
    nullable: bool = False


@dataclass(frozen=True)
class Method:
    """One entry of the table.

    Attributes:
        name: such as ``va.ping``.
        handler: the async function, called as ``handler(call, *params)``.
        parameters: in order; optional ones last.
        returns: XML-RPC type name of the result.
        help: first paragraph onwards of the handler's docstring.
        inline: answered by the job manager itself, outside the execute slots (design: hello, ping,
            introspection). Such a handler must not wait for anything.
        urgent: executed at once, outside the execute slots too: what holds those may be waiting for it.
    """

    name: str
    handler: Handler
    parameters: tuple[Parameter, ...]
    returns: str
    help: str
    inline: bool = False
    urgent: bool = False

    def signatures(self) -> list[list[str]]:
        """Return the signatures as `system.methodSignature` gives them: a list per accepted parameter count.

        Each holds the return type, then the parameter types; what may be of any type is ``"any"``.
        """
        required = sum(not p.optional for p in self.parameters)
        types = [p.type or "any" for p in self.parameters]
        return [[self.returns, *types[:n]] for n in range(required, len(types) + 1)]

    def check(self, params: list[Value]) -> None:
        """Check a call's parameters against the signature.

        Raises:
            Fault: INVALID_PARAMS, naming the parameter and the usage.
        """
        usage = f"{self.name}({', '.join(_usage(p) for p in self.parameters)})"
        if len(params) > len(self.parameters):
            raise Fault(FaultCode.INVALID_PARAMS, f"too many parameters ({len(params)}), usage: {usage}")
        for i, parameter in enumerate(self.parameters):
            if i >= len(params):
                if parameter.optional:
                    return
                raise Fault(
                    FaultCode.INVALID_PARAMS, f"parameter '{parameter.name}' is missing, usage: {usage}"
                )
            found = type_name(params[i])
            if parameter.nullable and found == "nil":
                continue
            if parameter.type is not None and found != parameter.type:
                raise Fault(
                    FaultCode.INVALID_PARAMS,
                    f"parameter '{parameter.name}' must be {parameter.type}, not {found}, usage: {usage}",
                )


class Gate:
    """What every call has to pass before its handler runs. This one lets all pass; a policy does not."""

    async def admit(self, method: str, params: list[Value]) -> None:
        """Let a call pass by returning.

        It must not wait for anything if the method is one that is answered inline.

        Raises:
            Fault: FORBIDDEN, naming what forbids it.
        """

    def passes(self, method: str) -> bool:
        """Whether every call of this method passes now, so that nobody need ask for one of them."""
        return type(self) is Gate

    def forbidden(self, methods: list[str]) -> list[str] | None:
        """Return those of which no call passes, whatever its parameters are; None: there is no policy."""
        return None


class Registry:
    """The methods of one end, by name.

    Attributes:
        gate: what their calls have to pass.
    """

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}
        self._changing: Callable[[], Mapping[str, Method]] = dict
        self.gate = Gate()

    def method(
        self, name: str, *, inline: bool = False, urgent: bool = False
    ) -> Callable[[Handler], Handler]:
        """Return a decorator that registers a handler under *name* and returns it unchanged.

        Raises:
            ValueError: the name is taken, or an annotation is not a type that XML-RPC carries.
        """

        def register(handler: Handler) -> Handler:
            if name in self._methods:
                raise ValueError(f"method {name} is registered twice")
            self._methods[name] = _describe(name, handler, inline, urgent)
            return handler

        return register

    def include(self, other: Registry) -> None:
        """Add all methods of another registry (one topic per module, one registry per topic)."""
        for method in other:
            if method.name in self._methods:
                raise ValueError(f"method {method.name} is registered twice")
            self._methods[method.name] = method

    def offer(self, changing: Callable[[], Mapping[str, Method]]) -> None:
        """Add methods that come and go.

        Args:
            changing: returns those that there are at the moment, by name; must not wait for anything. What
                has a name that is taken is not offered.
        """
        self._changing = changing

    def get(self, name: str) -> Method:
        """Return the method of that name.

        Raises:
            Fault: METHOD_NOT_FOUND.
        """
        method = self._methods.get(name) or self._changing().get(name)
        if method is None:
            raise Fault(FaultCode.METHOD_NOT_FOUND, f"method '{name}' not found")
        return method

    async def invoke(self, call: Call, method: Method, params: list[Value]) -> Value:
        """Run the handler of a call whose parameters were checked, if the gate lets it pass.

        Raises:
            Fault: the gate's, or the handler's.
        """
        try:
            await self.gate.admit(method.name, params)
        except Fault as fault:
            # The caller logs it by the same tag.
            _log.warning("%s %s: %s: %s", method.name, call.tag, fault.kind.value, fault)
            raise
        return await method.handler(call, *params)

    def __iter__(self) -> typing.Iterator[Method]:
        return iter({**self._changing(), **self._methods}.values())

    def __contains__(self, name: str) -> bool:
        return name in self._methods

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted({*self._changing(), *self._methods})


def _describe(name: str, handler: Handler, inline: bool, urgent: bool) -> Method:
    hints = typing.get_type_hints(handler)
    parameters = [
        Parameter(p.name, _xmlrpc_type(hints.get(p.name, Any), name), p.default is not p.empty)
        for p in list(inspect.signature(handler).parameters.values())[1:]
    ]
    returns = _xmlrpc_type(hints.get("return", Any), name) or "any"
    return Method(name, handler, tuple(parameters), returns, inspect.getdoc(handler) or "", inline, urgent)


def _xmlrpc_type(annotation: object, method: str) -> str | None:
    origin = typing.get_origin(annotation) or annotation
    if origin in (Any, typing.Union, types.UnionType):  # Value is a union
        return None
    if origin not in XMLRPC_TYPE_NAMES:
        raise ValueError(f"method {method}: XML-RPC has no type for {annotation!r}")
    return XMLRPC_TYPE_NAMES[origin]


def _usage(parameter: Parameter) -> str:
    text = f"{parameter.name}: {parameter.type or 'any'}"
    return f"[{text}]" if parameter.optional else text
