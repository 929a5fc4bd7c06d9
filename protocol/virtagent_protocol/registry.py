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
import types
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import Fault, FaultCode
from .values import XMLRPC_TYPE_NAMES, Value, type_name

Handler = Callable[..., Awaitable[Value]]
AfterReply = Callable[[], Awaitable[None]]


@dataclass
class Call:
    """One received call, as its handler sees it.

    Attributes:
        method: the name it was called by.
        tag: the client tag, which both ends log.
        after_reply: functions to run once the reply has been written to the transport. They do not run
            if the call is cancelled or its session ends first: what they do is never done unannounced.
    """

    method: str
    tag: str
    after_reply: list[AfterReply] = field(default_factory=list)


@dataclass(frozen=True)
class Parameter:
    """One positional parameter: its name, its XML-RPC type (None: any) and whether it may be left out."""

    name: str
    type: str | None
    optional: bool


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
    """

    name: str
    handler: Handler
    parameters: tuple[Parameter, ...]
    returns: str
    help: str
    inline: bool = False

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
            if parameter.type is not None and found != parameter.type:
                raise Fault(
                    FaultCode.INVALID_PARAMS,
                    f"parameter '{parameter.name}' must be {parameter.type}, not {found}, usage: {usage}",
                )


class Registry:
    """The methods of one end, by name."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}

    def method(self, name: str, *, inline: bool = False) -> Callable[[Handler], Handler]:
        """Return a decorator that registers a handler under *name* and returns it unchanged.

        Raises:
            ValueError: the name is taken, or an annotation is not a type that XML-RPC carries.
        """

        def register(handler: Handler) -> Handler:
            if name in self._methods:
                raise ValueError(f"method {name} is registered twice")
            self._methods[name] = _describe(name, handler, inline)
            return handler

        return register

    def include(self, other: Registry) -> None:
        """Add all methods of another registry (one topic per module, one registry per topic)."""
        for method in other:
            if method.name in self._methods:
                raise ValueError(f"method {method.name} is registered twice")
            self._methods[method.name] = method

    def get(self, name: str) -> Method:
        """Return the method of that name.

        Raises:
            Fault: METHOD_NOT_FOUND.
        """
        try:
            return self._methods[name]
        except KeyError:
            raise Fault(FaultCode.METHOD_NOT_FOUND, f"method '{name}' not found") from None

    def __iter__(self) -> typing.Iterator[Method]:
        return iter(self._methods.values())

    def __contains__(self, name: str) -> bool:
        return name in self._methods

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._methods)


def _describe(name: str, handler: Handler, inline: bool) -> Method:
    hints = typing.get_type_hints(handler)
    parameters = [
        Parameter(p.name, _xmlrpc_type(hints.get(p.name, Any), name), p.default is not p.empty)
        for p in list(inspect.signature(handler).parameters.values())[1:]
    ]
    returns = _xmlrpc_type(hints.get("return", Any), name) or "any"
    return Method(name, handler, tuple(parameters), returns, inspect.getdoc(handler) or "", inline)


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
