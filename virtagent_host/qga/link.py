"""qemu-ga with the face of a virtagent link: states, calls and a status, for a guest that has no other agent.

The rules:

1. It is *ready* when qemu-ga has answered a sync and told what it is. Nothing less proves that anybody reads.
2. Its heartbeat is a command that is answered while file systems are frozen, too. There is none while
   another command is under way: qemu-ga does one at a time, and a long one is no death.
3. A reboot is seen only where QEMU tells it (the port closes); a restart between two commands is not seen
   at all, and harms nobody but those who had files open.
4. While the VM is stopped, silence means nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from virtagent_protocol.counters import Counters
from virtagent_protocol.errors import (
    FaultCode,
    LinkBroken,
    NotReady,
    RemoteFault,
    RemoteProtocolError,
    SessionReset,
    VirtagentError,
)
from virtagent_protocol.linkstate import LinkEvent, LinkState, Status
from virtagent_protocol.observed import Observed
from virtagent_protocol.qga.messages import COMMAND_NOT_FOUND, QgaError
from virtagent_protocol.session import Hello, Role, Session
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct, Value, as_struct, member

from . import processes, transfers
from .commands import METHOD_PREFIX, command_of, method_of
from .conversation import SYNC_AGAIN, Conversation
from .methods import METHODS as PLAIN_METHODS
from .methods import Handler
from .pipes import Pipes
from .socket import UNANSWERED

_log = logging.getLogger("virtagent.qga")

#: What stands for the protocol's version.
PROTOCOL = "qga"
#: Seconds without an answer after which a heartbeat is due, and seconds that it may take.
IDLE, PATIENCE = 15.0, 10.0
#: Commands that an agent may name; qemu-ga has 44.
COMMANDS_MAX = 1000
#: Characters of the agent's version.
_VERSION_MAX = 100

#: Method → its function, and the commands without which it is not there.
METHODS: dict[str, tuple[Handler, frozenset[str]]] = {
    **PLAIN_METHODS,
    **processes.METHODS,
    **transfers.METHODS,
}

_TALKING = (LinkState.READY, LinkState.FROZEN)
_FREEZE_STATUS = "guest-fsfreeze-status"


@dataclass(frozen=True)
class _Info:
    """What guest-info told."""

    agent: str
    version: str
    commands: frozenset[str]


class QgaLink(Observed):
    """See `GuestLink`.

    Args:
        on_status: called with each new status; must return at once.
        on_session: called with each new session and the one before it, if any; must return at once.
    """

    def __init__(
        self,
        *,
        on_status: Callable[[Status], None] = lambda status: None,
        on_session: Callable[[Session, Session | None], None] = lambda session, previous: None,
    ) -> None:
        super().__init__(on_status)
        self.counters = Counters()
        self._on_session = on_session
        self._conversation: Conversation | None = None
        self._nursery: trio.Nursery | None = None
        self._pipes = Pipes()
        self._jobs: dict[int, processes.Job] = {}
        self._info: _Info | None = None
        self._session: Session | None = None
        self._last_session: Session | None = None
        self._heard = 0.0

    # --- What the owner sees -------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """Who has answered, if somebody has: a session in name only."""
        return self._session

    def figures(self) -> Struct:
        """Return counters, for `va_status`."""
        return {**self._error_figures(), "refusal": None, **self.counters.to_value()}

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method: one of `METHODS`, ``va.capabilities``, or a command as ``guest.…``.

        Raises:
            NotReady: nobody has answered yet, or not any more.
            SessionReset: the channel was lost while the call was in flight.
            RemoteFault: the agent answered with an error, or cannot do this.
            RemoteProtocolError: what it answered makes no sense.
        """
        conversation, info = self._conversation, self._info
        if conversation is None or info is None or self._below not in _TALKING:
            raise NotReady(f"{self.status.state.value}: {self.status.reason}")
        try:
            result = await self._call(conversation, info, method, params)
        except QgaError as error:
            self.counters.calls["answered"] += 1
            raise RemoteFault(_code(error), error.desc) from error
        except SessionReset:
            self.counters.calls["reset"] += 1
            raise
        except trio.Cancelled:
            self.counters.calls["cancelled"] += 1
            raise
        self.counters.calls["answered"] += 1
        return result

    def open_stream(self) -> LinkStream:
        """Return our end of a new stream, whose other end is here, too (`pipes`).

        Raises:
            NotReady: nobody has answered yet, or there are too many.
        """
        if self._info is None:
            raise NotReady(f"{self.status.state.value}: {self.status.reason}")
        return self._pipes.open()

    def hint(self, event: LinkEvent, reason: str) -> None:
        """Tell what is known of the port from elsewhere: QEMU's events, a hang-up."""
        changed = self._change(event, reason)
        if changed and event in (LinkEvent.PORT_CLOSED, LinkEvent.PORT_REMOVED):
            self._end_session()
            if self._conversation is not None:
                self._conversation.lose(reason)
        self._notify(changed)

    def resume(self) -> None:
        """The VM runs again."""
        self._heard = trio.current_time()
        super().resume()

    # --- The life of a transport ---------------------------------------------------------------------

    async def run(self, stream: trio.abc.Stream) -> None:
        """Serve one open transport until it fails or the caller cancels.

        Raises:
            LinkBroken: the transport failed; the message says how.
        """
        self._conversation = Conversation(stream, self.counters, self._on_heard)
        reason = "the link was closed"
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._tend, self._conversation)
                try:
                    await self._conversation.read()
                    reason = "the other end closed the channel"
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    reason = f"the channel failed: {error or type(error).__name__}"
                self.note_error(reason)
                nursery.cancel_scope.cancel()
        finally:
            self._conversation.end(reason)
            self._conversation = self._nursery = None
            self._end_session()
            self._apply(LinkEvent.LOST, reason)
        raise LinkBroken(reason)

    def _on_heard(self) -> None:
        self._heard = trio.current_time()

    async def _tend(self, conversation: Conversation) -> None:
        """Greet, and see that the agent is still there, for as long as the channel is open."""
        while True:
            await self.wait_for(lambda status: status.state in (LinkState.GREETING, *_TALKING))
            if self._info is None:
                await self._greet(conversation)
                continue
            due = self._heard + IDLE
            if conversation.busy or trio.current_time() < due:
                await trio.sleep(max(due - trio.current_time(), 1.0))
                continue
            with trio.move_on_after(PATIENCE) as patience:
                await self._look(conversation, self._info)
            if patience.cancelled_caught and self.status.state in _TALKING:
                reason = f"no answer to a heartbeat within {PATIENCE:g} s"
                self.note_error(reason)
                self._end_session()
                self._apply(LinkEvent.LOST, reason)

    async def _greet(self, conversation: Conversation) -> None:
        try:
            # Longer than a sync waits, so that a lost one is sent again.
            with trio.fail_after(3 * SYNC_AGAIN):
                info = _read_info(await conversation.execute("guest-info"))
        except trio.TooSlowError:
            return
        except (QgaError, VirtagentError) as error:
            self.note_error(f"guest-info: {error}")
            self._apply(LinkEvent.LOST, f"the guest's agent does not answer as it should: {error}")
            await trio.sleep(SYNC_AGAIN)
            return
        self._info = info
        previous = self._last_session
        self.counters.sessions += 1
        hello = Hello(Role.GUEST, "0" * 16, info.agent)
        self._session = self._last_session = Session(
            f"qga-{self.counters.sessions}", hello, PROTOCOL, crc=False
        )
        self._apply(LinkEvent.HELLO, f"{info.agent} has answered")
        self._on_session(self._session, previous)
        with trio.move_on_after(PATIENCE):
            await self._look(conversation, info)

    async def _look(self, conversation: Conversation, info: _Info) -> None:
        """Ask for a sign of life, and whether the file systems are frozen."""
        try:
            if _FREEZE_STATUS not in info.commands:
                await conversation.execute("guest-ping")
                return
            frozen = await conversation.execute(_FREEZE_STATUS)
        except (QgaError, SessionReset):
            return
        self._apply_frozen(frozen == "frozen")

    def _apply_frozen(self, frozen: bool) -> None:
        if frozen:
            self._apply(LinkEvent.FROZEN, "the guest's file systems are frozen")
        else:
            self._apply(LinkEvent.THAWED, "the guest's file systems are thawed")

    # --- Calls ---------------------------------------------------------------------------------------

    async def _call(
        self, conversation: Conversation, info: _Info, method: str, params: tuple[Value, ...]
    ) -> Value:
        if method == "va.capabilities":
            info = self._info = _read_info(await conversation.execute("guest-info"))
            methods: list[Value] = [*_methods(info)]
            return {"agent": info.agent, "version": info.version, "protocol": PROTOCOL, "methods": methods}
        if method in METHODS:
            handler, needed = METHODS[method]
            if missing := needed - info.commands:
                raise self._cannot(f"'{method}', which needs {', '.join(sorted(missing))}")
            assert self._nursery is not None
            agent = _Agent(conversation, self._pipes, self._nursery, self._jobs, self._cannot)
            return await handler(agent, *params)
        if not method.startswith(METHOD_PREFIX):
            raise self._cannot(f"'{method}'")
        name = command_of(method)
        if name not in info.commands:
            raise RemoteFault(FaultCode.METHOD_NOT_FOUND, f"The command {name} has not been found")
        arguments = as_struct(params[0], "the arguments") if params else {}
        if name in UNANSWERED:
            await conversation.execute_unanswered(name, arguments)
            return None
        result = _value(await conversation.execute(name, arguments))
        if name.startswith("guest-fsfreeze-"):
            await self._look(conversation, info)
        return result

    def _cannot(self, what: str) -> RemoteFault:
        agent = self._info.agent if self._info else "qemu-ga"
        return RemoteFault(
            FaultCode.METHOD_NOT_FOUND,
            f"this guest runs {agent}, which has no {what}: install va-guest there",
        )

    def _end_session(self) -> None:
        if self._session is not None:
            self.counters.resets += 1
        self._pipes.end("the session with the guest's agent has ended")
        self._session = self._info = None


class _Agent:
    """What methods have of the link: see `methods.Agent`."""

    def __init__(
        self,
        conversation: Conversation,
        pipes: Pipes,
        nursery: trio.Nursery,
        jobs: dict[int, processes.Job],
        cannot: Callable[[str], RemoteFault],
    ) -> None:
        self.execute = conversation.execute
        self.execute_unanswered = conversation.execute_unanswered
        self.accept = pipes.accept
        self.jobs = jobs
        self.cannot = cannot
        self._nursery = nursery

    def spawn(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        self._nursery.start_soon(_attended, function, args)


async def _attended(function: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
    try:
        await function(*args)
    except (VirtagentError, QgaError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        _log.debug("ended early: %s", error)


def _read_info(value: object) -> _Info:
    """Read what guest-info answers. Raises RemoteProtocolError."""
    info = as_struct(_value(value), "the answer to guest-info")
    version = member(info, "version", str)[:_VERSION_MAX]
    commands = set()
    for entry in member(info, "supported_commands", list)[:COMMANDS_MAX]:
        commands.add(member(as_struct(entry, "each command"), "name", str)[:_VERSION_MAX])
    # Ours tells its name besides.
    agent = member(info, "agent", str, f"qemu-ga {version}")[:_VERSION_MAX]
    return _Info(agent, version, frozenset(commands))


def _methods(info: _Info) -> list[str]:
    ours = [method for method, (_, needed) in METHODS.items() if needed <= info.commands]
    return sorted(["va.capabilities", *ours, *(method_of(name) for name in info.commands)])


def _code(error: QgaError) -> FaultCode:
    if error.error_class != COMMAND_NOT_FOUND:
        return FaultCode.FAILED
    # There is no other sign of it than the words.
    if "has been disabled" not in error.desc:
        return FaultCode.METHOD_NOT_FOUND
    return FaultCode.NOT_READY if "frozen" in error.desc else FaultCode.FORBIDDEN


def _value(value: object) -> Value:
    """Return what JSON had as a value: both know the same types, but for integers past 64 bits."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _value(item) for name, item in value.items()}
    raise RemoteProtocolError(f"a {type(value).__name__} in an answer of the guest's agent")
