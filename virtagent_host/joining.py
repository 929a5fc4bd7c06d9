"""A client's descriptor joined with a stream of the guest's that a call names.

The service knows nothing of what is on it. It pumps until one side ends; a cut is told to the client.
trio is imported where it is used, because the CLI imports the tables of commands and must start at once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtagent_protocol.values import Struct, as_struct

from .command import Client, VirtualMachine

if TYPE_CHECKING:
    from virtagent_protocol.stream import LinkStream


async def join(
    vm: VirtualMachine, method: str, options: Struct, name: str, fd: int, client: Client, event: str
) -> Struct:
    """Open a stream by a call of the guest, join it with a descriptor, and return the call's answer.

    Args:
        vm: whose guest, or session, is called.
        method: takes one struct, with ``stream``.
        options: the other members of that.
        name: under which the client has handed over the descriptor.
        fd: the descriptor; it is closed in any case.
        client: leaves with all that it has joined.
        event: sent to the client if the stream is cut: {fd (the name), kind, reason}.

    Raises:
        VirtagentError: the guest cannot be called, or has refused; nothing was joined.
    """
    try:
        stream = vm.open_stream()
        try:
            answer = as_struct(
                await vm.call(method, {**options, "stream": stream.id}), f"the answer to {method}"
            )
        except BaseException:
            stream.reset("refused")
            raise
    except BaseException:
        os.close(fd)
        raise
    client.spawn(_pump, stream, fd, name, client, event)
    return answer


async def _pump(stream: LinkStream, fd: int, name: str, client: Client, event: str) -> None:
    from .streams.pump import StreamBroken, splice

    try:
        await splice(stream, fd)
    except StreamBroken as error:
        client.emit(event, {"fd": name, "kind": error.kind.value, "reason": str(error)})
