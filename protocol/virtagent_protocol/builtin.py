"""The methods that both ends offer: ping, capabilities, and XML-RPC introspection (SPEC.md section 10)."""

from __future__ import annotations

import trio

from . import xmlrpc
from .errors import Fault, FaultCode, RemoteProtocolError
from .limits import BODY_MAX
from .registry import Call, Registry
from .session import PROTOCOLS
from .stream import REFUSED
from .values import Value, as_struct, member


def add_builtin(registry: Registry, agent: str) -> None:
    """Add the built-in methods to a registry that holds all others of this end.

    Args:
        registry: what they describe, and where they go.
        agent: program name and version, such as ``"va-guest 0.1.0"``.
    """
    method = registry.method

    @method("va.ping", inline=True)
    async def ping(call: Call) -> None:
        """Answer at once, with nil."""

    @method("va.capabilities", inline=True)
    async def capabilities(call: Call) -> dict[str, Value]:
        """Return agent (name and version), version, protocol version and the names of all methods.

        If a policy is in force, forbidden names those of which it allows no call.
        """
        forbidden = registry.gate.forbidden(registry.names())
        return {
            "agent": agent,
            "version": agent.rpartition(" ")[2],
            "protocol": PROTOCOLS[0],
            "methods": [*registry.names()],
            **({} if forbidden is None else {"forbidden": [*forbidden]}),
        }

    @method("system.listMethods", inline=True)
    async def list_methods(call: Call) -> list[Value]:
        """Return the names of all methods, sorted."""
        return [*registry.names()]

    @method("system.methodSignature", inline=True)
    async def method_signature(call: Call, name: str) -> list[Value]:
        """Return the signatures of a method: for each, the return type, then the parameter types."""
        return [[*signature] for signature in registry.get(name).signatures()]

    @method("system.methodHelp", inline=True)
    async def method_help(call: Call, name: str) -> str:
        """Return what a method does, in words."""
        return registry.get(name).help

    @method("system.multicall")
    async def multicall(call: Call, calls: list[Value]) -> list[Value]:
        """Make several calls, one after the other, in one message.

        Each call is a struct of methodName and params. The result has, for each, an array that
        holds its result, or the struct of its fault; a fault does not keep the others from being made.
        """
        results: list[Value] = []
        size = 0
        for item in calls:
            # A handler that waits for nothing would hold up the whole process, once for each call.
            await trio.lowlevel.checkpoint()
            results.append(await _call_one(registry, call, item))
            size += len(xmlrpc.encode_result(results[-1]))
            # What fits no message is not collected in memory either: one request may name thousands of calls.
            if size > BODY_MAX:
                raise Fault(
                    FaultCode.TOO_LARGE,
                    f"the results of {len(results)} of {len(calls)} calls have more than {BODY_MAX} bytes",
                )
        return results


async def _call_one(registry: Registry, call: Call, item: Value) -> Value:
    accepted = len(call.streams)
    try:
        struct = as_struct(item, "each call")
        name = member(struct, "methodName", str)
        params = member(struct, "params", list)
        if name == "system.multicall":
            raise Fault(FaultCode.INVALID_REQUEST, "system.multicall must not call itself")
        method = registry.get(name)
        method.check(params)
        return [await registry.invoke(call, method, params)]
    except RemoteProtocolError as error:
        return {"faultCode": int(FaultCode.INVALID_REQUEST), "faultString": str(error)}
    except Fault as fault:
        call.drop_streams(REFUSED, since=accepted)
        return {"faultCode": int(fault.code), "faultString": fault.message}
