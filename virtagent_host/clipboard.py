"""`va_clipboard_*`: their entries for the table of `commands`.

The service never touches a display. It joins a descriptor of the client with a stream of the session's
agent; what is on it (`virtagent_protocol.clipboard`) the client and that agent write and read.

A clipboard is always a session's. Without the argument ``session`` it is the only one's that there is.
"""

from __future__ import annotations

import os
from typing import Any

from virtagent_protocol.errors import NotThere, RemoteProtocolError
from virtagent_protocol.values import Struct, as_struct, member

from .command import Argument, Arguments, Client, Command, InvalidArguments, VirtualMachine
from .joining import join
from .sessions import InSession

#: Seconds for the session's agent to begin; it may have to connect to its display.
TIMEOUT = 20.0
#: Tells a client that its stream was cut: {fd, kind, reason}.
BROKEN_EVENT = "VA_CLIPBOARD_BROKEN"
#: Characters of a type's name in a list. Longer ones are none of ours.
_NAME_MAX = 256


async def types(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_clipboard_types`."""
    vm = await _session(vm)
    answer = as_struct(await vm.call("va.clipboard_types"), "the answer to va.clipboard_types")
    names = member(answer, "types", list)
    if not all(isinstance(name, str) for name in names):
        raise RemoteProtocolError("the answer to va.clipboard_types must hold strings only")
    return {"types": [name for name in names if len(str(name)) <= _NAME_MAX]}


async def get(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_clipboard_get`."""
    options: Struct = {}
    if arguments["types"] is not None:
        options["patterns"] = [*arguments["types"]]
    if arguments["max-size"] is not None:
        options["max_size"] = arguments["max-size"]
    return await _join("va.clipboard_read", options, vm, arguments, client)


async def put(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_clipboard_set`."""
    return await _join("va.clipboard_write", {}, vm, arguments, client)


async def watch(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_clipboard_watch`."""
    return await _join("va.clipboard_watch", {}, vm, arguments, client)


async def _join(
    method: str, options: Struct, vm: VirtualMachine, arguments: Arguments, client: Client
) -> dict[str, Any]:
    name = arguments["fd"]
    fd = client.take_fd(name)
    try:
        vm = await _session(vm)
    except BaseException:
        os.close(fd)
        raise
    await join(vm, method, options, name, fd, client, BROKEN_EVENT)
    return {}


async def _session(vm: VirtualMachine) -> VirtualMachine:
    """Return *vm* if it is a session already, else its only session."""
    if isinstance(vm, InSession):
        return vm
    answer = await vm.call("va.sessions")
    if not isinstance(answer, list):
        raise RemoteProtocolError("the answer to va.sessions must be an array")
    found = [member(as_struct(one, "a session"), "id", str) for one in answer]
    if not found:
        raise NotThere(
            "there is no agent of a user's session in the guest, and a clipboard is always a session's: "
            "as that user, systemctl --user enable --now va-guest-session"
        )
    if len(found) > 1:
        raise InvalidArguments(f"the guest has several sessions, say which ('session'): {', '.join(found)}")
    return InSession(vm, found[0])


_FD = Argument("fd", "string", "a connected socket: name under which getfd handed it over")
_TIMEOUT = Argument("timeout", "number", "seconds to wait", optional=True, default=TIMEOUT, minimum=0)

COMMANDS = (
    Command(
        "va_clipboard_types",
        "List the types that the clipboard of a session holds.",
        "{types: [name…]}",
        "va_clipboard_types",
        types,
        (_TIMEOUT,),
    ),
    Command(
        "va_clipboard_get",
        "Begin to send what the clipboard of a session holds over a descriptor.",
        "{}; then on the descriptor a line of JSON and the bytes of types; VA_CLIPBOARD_BROKEN if it is cut",
        "va_clipboard_get va_socket",
        get,
        (
            _FD,
            Argument(
                "types",
                "array",
                "types, or patterns such as image/*; else text, HTML, an image",
                optional=True,
            ),
            Argument("max-size", "integer", "bytes that it may have", optional=True, minimum=0),
            _TIMEOUT,
        ),
    ),
    Command(
        "va_clipboard_set",
        "Begin to set the clipboard of a session to what comes from a descriptor.",
        "{}; then on the descriptor a line of JSON; VA_CLIPBOARD_BROKEN if it is cut",
        "va_clipboard_set va_socket",
        put,
        (_FD, _TIMEOUT),
    ),
    Command(
        "va_clipboard_watch",
        "Begin to tell on a descriptor of each change of the clipboard of a session.",
        "{}; then on the descriptor a line of JSON for each; VA_CLIPBOARD_BROKEN if it is cut",
        "va_clipboard_watch va_socket",
        watch,
        (_FD, _TIMEOUT),
    ),
)
