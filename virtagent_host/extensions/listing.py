"""`va_extensions`: a guest's extensions, each with signature and help; for the table of `commands`."""

from __future__ import annotations

from virtagent_protocol.errors import FaultCode, RemoteFault, RemoteProtocolError
from virtagent_protocol.text import visible_line
from virtagent_protocol.values import as_struct, member

from ..command import Argument, Arguments, Client, Command, VirtualMachine
from .described import command_names, describe, method_name

#: Seconds: one round trip, and one for each extension.
TIMEOUT = 10.0


async def list_extensions(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_extensions`."""
    answer = as_struct(await vm.renegotiate(), "the answer to va.capabilities")
    names = command_names(name for name in member(answer, "methods", list) if isinstance(name, str))
    found, unusable = [], []
    for name in names:
        if arguments["name"] not in (None, name):
            continue
        method = method_name(name)
        assert method is not None
        try:
            text = await vm.call("system.methodHelp", method)
            command = describe(method, text)
        except RemoteFault as fault:
            if fault.code != FaultCode.METHOD_NOT_FOUND:  # it has gone meanwhile
                raise
        except RemoteProtocolError as error:
            unusable.append(f"{name}: {visible_line(str(error))}")
        else:
            usage = str(text).partition("\n")[0]
            found.append({"name": name, "usage": usage, "help": command.help})
    return {"extensions": found, **({"unusable": unusable} if unusable else {})}


COMMANDS = (
    Command(
        "va_extensions",
        "List the extensions of the guest's agent: commands va_x_NAME, made of files in the guest.",
        "{extensions: [{name, usage, help}], unusable: [why…] if there are such}",
        "va_extensions",
        list_extensions,
        (
            Argument("name", "string", "of one, as va_x_NAME; else all", optional=True),
            Argument("timeout", "number", "seconds to wait", optional=True, default=TIMEOUT, minimum=0),
        ),
        session=False,
    ),
)
