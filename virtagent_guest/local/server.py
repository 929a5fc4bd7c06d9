"""The agent's end of the local socket: a link for each program that connects.

The rules:

1. Anybody in the guest may connect; what one is offered depends on who it is. Each topic makes a registry for
   each client, so a handler knows its caller without asking (`Topic`).
2. The wire is that of the port. The agent has the role of the host towards those who connect.
3. A client has a bounded number of connections, connects so often a second, says hello in time or is sent
   away, and its link has small limits. All clients together leave places for root.
4. What one client sends is handled in turns (`turns`). What it breaks is its own link.
5. The agent serves the host without this socket too: if it cannot be made, that is a warning.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from virtagent_protocol import __version__
from virtagent_protocol.bucket import TokenBucket
from virtagent_protocol.errors import LinkBroken
from virtagent_protocol.limits import Settings
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent, Status
from virtagent_protocol.machine import boot_id
from virtagent_protocol.registry import Registry
from virtagent_protocol.session import Role
from virtagent_protocol.unixsocket import bind_unix

from .caller import Caller, caller_of
from .turns import Turnstile, TurnStream

log = logging.getLogger("virtagent.local")

#: Connections at a time: each may hold a file descriptor and a few messages of 2 MiB.
CLIENTS_MAX = 256
#: Of them, places that only root can take: others, with however many user ids, cannot lock it out.
ROOT_PLACES = 64
#: Connections of one user at a time; root has all its places. A session has one agent and a few programs.
CLIENTS_OF_UID = 16
#: Connections of one user: so many at once, then so many a second. The others wait.
CONNECT_BURST, CONNECT_RATE = 100, 50.0
#: Users whose rate is remembered.
RATES_KEPT = 256
#: Seconds to say hello. A program does so in milliseconds; a host that is overbooked may stop it for seconds.
HELLO_TIME = 10.0
#: Connections that the kernel holds while the agent is busy.
BACKLOG = 128
#: Limits of each link. The queue is short, since each request in it may have 2 MiB.
SETTINGS = Settings(send_max=4, execute_max=4, queue_max=2)

SOCKET_MODE = 0o666
DIRECTORY_MODE = 0o755


class LocalClient:
    """One who is connected.

    Attributes:
        caller: who it is.
        link: to it. It may break at any time.
        at_end: called, without arguments, when the connection has ended; must return at once.
        detail: what the log calls it.
    """

    def __init__(self, caller: Caller, number: int) -> None:
        self.caller = caller
        self.number = number
        self.at_end: list[Callable[[], None]] = []
        self.link: Link

    def __str__(self) -> str:
        return f"local client {self.number}, {self.caller}"


#: What one topic offers to a client; called once for each, before its link is made.
Topic = Callable[[LocalClient], Registry]


async def serve_local(
    path: str, topics: Sequence[Topic], *, task_status: trio.TaskStatus[bool] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the local socket until cancelled, or return at once if it cannot be made (rule 5).

    Args:
        path: of the socket; its directory is made if only that is missing.
        topics: what is offered.
        task_status: is told whether programs can connect.
    """
    try:
        directory = Path(path).parent
        if not directory.exists():
            directory.mkdir()
            directory.chmod(DIRECTORY_MODE)  # whatever the umask is
        bound = bind_unix(path, SOCKET_MODE)
    except OSError as error:
        log.warning(
            "%s: programs of the guest cannot reach the agent: %s; see 'socket' in [local]",
            path,
            error.strerror or error,
        )
        task_status.started(False)
        return
    bound.listen(BACKLOG)
    ours = os.stat(path)
    try:
        async with trio.SocketListener(trio.socket.from_stdlib_socket(bound)) as listener:
            task_status.started(True)
            await trio.serve_listeners(LocalServer(topics).serve_client, [listener])
    finally:
        with suppress(OSError):
            if os.path.samestat(ours, os.lstat(path)):
                os.unlink(path)


class LocalServer:
    """All clients of the socket.

    Args:
        topics: what is offered.
    """

    def __init__(self, topics: Sequence[Topic]) -> None:
        self._topics = topics
        self._turnstile = Turnstile()
        self._clients: Counter[int] = Counter()
        self._rates: dict[int, TokenBucket] = {}
        self._count = 0

    async def serve_client(self, stream: trio.SocketStream) -> None:
        """Serve one connection until it ends. Raises nothing of its client's making."""
        async with stream:
            self._count += 1
            client = LocalClient(await caller_of(stream), self._count)
            uid = client.caller.uid
            if not self._has_place(uid):
                log.info("%s is sent away: there are too many connections", client)
                return
            self._clients[uid] += 1
            try:
                await self._until_due(uid)
                await self._serve(client, TurnStream(stream, self._turnstile))
            except Exception:
                log.exception("%s: internal error", client)
            finally:
                self._clients[uid] -= 1
                if not self._clients[uid]:
                    del self._clients[uid]
                for function in client.at_end:
                    function()
                log.debug("%s is gone", client)

    def _has_place(self, uid: int) -> bool:
        if uid == 0:
            return self._clients.total() < CLIENTS_MAX
        others = self._clients.total() - self._clients[0]
        return self._clients[uid] < CLIENTS_OF_UID and others < CLIENTS_MAX - ROOT_PLACES

    async def _until_due(self, uid: int) -> None:
        bucket = self._rates.pop(uid, None) or TokenBucket(CONNECT_BURST, CONNECT_RATE)
        self._rates[uid] = bucket  # the last one, now: those that are forgotten were here longest ago
        if len(self._rates) > RATES_KEPT:
            del self._rates[next(iter(self._rates))]
        while not bucket.take(trio.current_time()):
            await trio.sleep(1 / CONNECT_RATE)

    async def _serve(self, client: LocalClient, stream: trio.abc.Stream) -> None:
        offered = Registry()
        for topic in self._topics:
            offered.include(topic(client))
        client.link = Link(
            Role.HOST,
            f"va-guest {__version__}",
            offered,
            boot_id=boot_id(),
            settings=SETTINGS,
            on_status=partial(_log_status, client),
        )
        client.link.hint(LinkEvent.PORT_OPENED, "a program has connected")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_away_if_silent, client, nursery.cancel_scope)
            with suppress(LinkBroken):
                await client.link.run(stream)
            nursery.cancel_scope.cancel()


def _log_status(client: LocalClient, status: Status) -> None:
    log.debug("%s: %s: %s", client, status.state.value, status.reason)


async def _send_away_if_silent(client: LocalClient, scope: trio.CancelScope) -> None:
    await trio.sleep(HELLO_TIME)
    if client.link.session is None:
        log.info("%s is sent away: it has not said hello within %g s", client, HELLO_TIME)
        scope.cancel()
