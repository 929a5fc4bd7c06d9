"""A unix socket on the host that speaks qemu-ga's wire, whatever agent the guest runs.

1. Each client has a stream of its own, and none sees another's answers. Its commands run one at a time, as
   with qemu-ga; those of several clients run side by side.
2. A command that cannot reach the guest is answered with an error that says why, where qemu-ga's socket
   would be silent.
3. A client that sends more than it reads is not read any further: a command's answer is sent before the
   next is run.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import trio

from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.qga.messages import (
    COMMAND_NOT_FOUND,
    Command,
    QgaError,
    Refusal,
    failure,
    parse_command,
    success,
)
from virtagent_protocol.qga.stream import JsonProblem, JsonStream

from ..bridge.listener import private_listener
from ..qemu.errors import to_qmp
from .commands import COMMAND_PREFIX, GuestCommands

log = logging.getLogger("virtagent.host")

#: Clients at a time, as for the bridge.
CLIENTS_MAX = 64
#: Bytes read at a time.
RECEIVE_SIZE = 16 * 1024
#: Bytes of a command: what a link's message carries (2 MiB), with room for white space and escapes.
COMMAND_MAX = 4 * 1024 * 1024

#: The commands that have no answer if they succeed.
UNANSWERED = frozenset({"guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"})


class QgaSocket:
    """The socket.

    Args:
        commands: the guest's.
    """

    def __init__(self, commands: GuestCommands) -> None:
        self._commands = commands
        self._clients = 0

    async def serve(
        self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve clients at *path* until cancelled; `started` is told when they can connect.

        Raises:
            CannotServe, NotThere, Forbidden: see `private_listener`.
        """
        async with private_listener(path) as listener:
            task_status.started()
            await trio.serve_listeners(self._serve_client, [listener])

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        if self._clients >= CLIENTS_MAX:
            log.warning("a client of the guest agent's socket is sent away: %d are connected", CLIENTS_MAX)
            return
        self._clients += 1
        try:
            with suppress(trio.BrokenResourceError):
                await self._converse(stream)
        except Exception:
            # A bug in one client's session must not end the others'.
            log.exception("a client of the guest agent's socket: internal error")
        finally:
            self._clients -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        wire = JsonStream(COMMAND_MAX)
        async with stream:
            while data := await stream.receive_some(RECEIVE_SIZE):
                for event in wire.feed(bytes(data)):
                    item = (
                        Refusal(QgaError(event.desc), {})
                        if isinstance(event, JsonProblem)
                        else parse_command(event.value)
                    )
                    answer = await self._answer(item)
                    if answer is not None:
                        await stream.send_all(answer)

    async def _answer(self, item: Command | Refusal) -> bytes | None:
        if isinstance(item, Refusal):
            return failure(item.error, item.id)
        try:
            if not item.name.startswith(COMMAND_PREFIX):
                raise QgaError(f"The command {item.name} has not been found", COMMAND_NOT_FOUND)
            result = await self._commands.execute(item.name, item.arguments)
        except QgaError as error:
            return failure(error, item.id)
        except VirtagentError as error:
            told = to_qmp(error)
            return failure(QgaError(told.desc, told.error_class), item.id)
        if item.name in UNANSWERED:
            return None
        return success(result, item.id, delimited=item.name == "guest-sync-delimited")
