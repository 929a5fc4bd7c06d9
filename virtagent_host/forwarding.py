"""`va_connect`, `va_listen` and what belongs to them: their entries for the table of `commands`.

What they do is `forward`'s.
"""

from __future__ import annotations

from virtagent_protocol.address import AddressError, parse_address

from .command import Argument, Arguments, Client, Command, InvalidArguments, VirtualMachine

#: Seconds for a guest to connect somewhere.
CONNECT_TIMEOUT = 15.0
#: Seconds for a guest to listen: it may have a name to look up.
LISTEN_TIMEOUT = 10.0


async def connect(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_connect`."""
    from .forward.table import Fds

    address = _address(arguments["address"], listening=False)
    names = tuple(arguments[name] for name in ("fd", "stdin-fd", "stdout-fd"))
    match names:
        case str(), None, None:
            fds = Fds(client.take_fd(names[0]))
        case None, str(), str():
            fds = Fds(client.take_fd(names[1]))
            try:
                fds.write = client.take_fd(names[2])
            except BaseException:
                fds.close()
                raise
        case _:
            raise InvalidArguments("give either 'fd', or 'stdin-fd' and 'stdout-fd'")
    wait = arguments["wait"]
    number = await vm.forwards.connect(client, address, fds, timeout=arguments["timeout"], wait=wait)
    return {"connection": number}


async def listen(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_listen`."""
    address = _address(arguments["address"], listening=True)
    listener, chosen = await vm.forwards.listen(client, address)
    return {"listener": listener, "address": chosen}


async def unlisten(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_unlisten`."""
    await vm.forwards.unlisten(client, arguments["listener"])
    return {}


async def accept(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_accept`."""
    from .forward.table import Fds

    await vm.forwards.accept(client, arguments["connection"], Fds(client.take_fd(arguments["fd"])))
    return {}


async def refuse(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_refuse`."""
    await vm.forwards.refuse(client, arguments["connection"])
    return {}


def _address(text: str, *, listening: bool) -> str:
    try:
        return str(parse_address(text, listening=listening))
    except AddressError as error:
        raise InvalidArguments(f"Parameter 'address': {error}") from None


_FD = "name under which getfd handed it over"
_CONNECTION = Argument("connection", "integer", "number that VA_CONNECTION told")

COMMANDS = (
    Command(
        "va_connect",
        "Connect to an address in the guest and join it with a file descriptor; both end with the client.",
        "{connection: its number, which VA_DISCONNECTED names at its end}",
        "va_connect tcp:127.0.0.1:22 va_socket",
        connect,
        (
            Argument("address", "string", "tcp:HOST:PORT or unix:/PATH, as seen in the guest"),
            Argument("fd", "string", f"a connected socket: {_FD}", optional=True),
            Argument("stdin-fd", "string", f"what is read from: {_FD}", optional=True),
            Argument("stdout-fd", "string", f"what is written to: {_FD}", optional=True),
            Argument(
                "wait",
                "boolean",
                "answer when it is connected; else at once, and VA_CONNECTED or VA_DISCONNECTED tells",
                optional=True,
                default=True,
            ),
            Argument(
                "timeout",
                "number",
                "seconds for the guest to connect",
                optional=True,
                default=CONNECT_TIMEOUT,
                minimum=0,
            ),
        ),
        session=False,
    ),
    Command(
        "va_listen",
        "Listen in the guest as long as the client is there; VA_CONNECTION tells of each connection.",
        "{listener: its number, address: with the port that was chosen for port 0}",
        "va_listen tcp:127.0.0.1:8080",
        listen,
        (
            Argument("address", "string", "tcp:HOST:PORT (HOST may be *) or unix:/PATH, in the guest"),
            Argument(
                "timeout",
                "number",
                "seconds to wait for the answer",
                optional=True,
                default=LISTEN_TIMEOUT,
                minimum=0,
            ),
        ),
        session=False,
    ),
    Command(
        "va_unlisten",
        "End a listener in the guest; the connections that it brought stay.",
        "{}",
        "va_unlisten 1",
        unlisten,
        (Argument("listener", "integer", "number that va_listen returned"),),
        session=False,
    ),
    Command(
        "va_accept",
        "Take a connection that a listener in the guest brought, and join it with a file descriptor.",
        "{}",
        "va_accept 2 va_socket",
        accept,
        (_CONNECTION, Argument("fd", "string", f"a connected socket: {_FD}")),
        session=False,
    ),
    Command(
        "va_refuse",
        "Reset a connection that a listener in the guest brought.",
        "{}",
        "va_refuse 2",
        refuse,
        (_CONNECTION,),
        session=False,
    ),
)
