"""The other end of the local socket: for programs of the guest that call the agent, or are called by it.

Two ways to the same socket:

* `connect` gives a `Link`, for programs on trio that also offer methods, or use streams.
* `Agent` makes one call after the other and needs neither trio nor a task. It is quick to import, and made of
  the same protocol modules without I/O as the link::

      with Agent() as agent:
          agent.call("va.notify", "backup.done", {"bytes": 12345})
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from virtagent_protocol import __version__, xmlrpc
from virtagent_protocol.errors import (
    CallTimeout,
    Fault,
    FaultCode,
    Forbidden,
    LinkBroken,
    NotReady,
    NotThere,
    ProtocolError,
    RemoteFault,
    SessionReset,
    VirtagentError,
)
from virtagent_protocol.limits import PeerLimits
from virtagent_protocol.messages import Message, Request, Response, encode
from virtagent_protocol.reader import Drop, MessageReader
from virtagent_protocol.session import Hello, Role, Session, establish
from virtagent_protocol.values import Value

from . import DEFAULT_SOCKET, SOCKET_VARIABLE

if TYPE_CHECKING:
    from virtagent_protocol.link import Link
    from virtagent_protocol.registry import Registry

#: Seconds for the agent to answer our hello.
HELLO_TIME = 10.0
#: Seconds for an answer, if the caller says nothing else.
CALL_TIME = 30.0
_READ_SIZE = 65536
#: Seconds between attempts to connect to an agent whose queue of connections is full.
_BUSY_PAUSE = 0.05


def socket_path() -> str:
    """Return where the agent's socket is: what the environment says, else the default."""
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


@asynccontextmanager
async def connect(
    path: str | None = None, registry: Registry | None = None, *, name: str = f"va-guest {__version__}"
) -> AsyncIterator[Link]:
    """Connect to the agent, and hold a link to it that is ready.

    Args:
        path: of the socket; None: `socket_path`.
        registry: the methods that are offered to the agent.
        name: name and version of this program, for the agent's log.

    Raises:
        NotThere, Forbidden, NotReady: the agent cannot be reached; or it does not answer.
        LinkBroken: the connection was lost; the block is cancelled at that moment.
    """
    import trio

    from virtagent_protocol.link import Link
    from virtagent_protocol.linkstate import LinkEvent, LinkState
    from virtagent_protocol.machine import boot_id
    from virtagent_protocol.nursery import plain_nursery
    from virtagent_protocol.registry import Registry

    path = path or socket_path()
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise _connect_error(path, error) from None
    link = Link(Role.GUEST, name, registry or Registry(), boot_id=boot_id())
    link.hint(LinkEvent.PORT_OPENED, "connected")
    async with stream, plain_nursery() as nursery:
        nursery.start_soon(_run, link, stream, path)
        try:
            with trio.fail_after(HELLO_TIME):
                await link.wait_for(lambda status: status.state is LinkState.READY)
        except trio.TooSlowError:
            raise _silent(path) from None
        yield link
        nursery.cancel_scope.cancel()


async def _run(link: Link, stream: object, path: str) -> None:
    met = link.counters
    try:
        await link.run(stream)  # type: ignore[arg-type]
    except LinkBroken as error:
        if not met.sessions:
            raise _sent_away(path) from None
        raise LinkBroken(f"{path}: {error}") from None


class Agent:
    """The agent, called from a program without trio: one call at a time.

    Between calls nothing is read, so the agent's own calls go unanswered; it knows to wait.

    Args:
        path: of the socket; None: `socket_path`.
        timeout: seconds to connect, and for each answer.

    Raises:
        NotThere, Forbidden, NotReady, LinkBroken: the agent cannot be reached.
    """

    def __init__(self, path: str | None = None, *, timeout: float = CALL_TIME) -> None:
        self._path = path or socket_path()
        self._timeout = timeout
        self._reader = MessageReader()
        self._own = Hello(Role.GUEST, secrets.token_hex(8), f"va-guest {__version__}", limits=PeerLimits())
        self._session: Session | None = None
        self._tags = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            deadline = time.monotonic() + min(timeout, HELLO_TIME)
            self._connect(deadline)
            self._greet(deadline)
        except BaseException:
            self._socket.close()
            raise

    def call(self, method: str, *params: Value, timeout: float | None = None) -> Value:
        """Call a method of the agent.

        Args:
            method: its name.
            params: its parameters.
            timeout: seconds for this answer. When they have passed, close the client.

        Raises:
            RemoteFault: the agent answered with a fault.
            LocalProtocolError: a parameter cannot be carried.
            CallTimeout: there was no answer in time.
            LinkBroken, SessionReset: the connection was lost; whether the agent acted is not known.
        """
        seconds = self._timeout if timeout is None else timeout
        assert self._session is not None
        tag = self._next_tag()
        body = xmlrpc.encode_call(method, list(params))
        deadline = time.monotonic() + seconds
        try:
            self._send(Request(tag, body, self._session.id), deadline)
            result, fault = xmlrpc.decode_response(self._answer(tag, self._session.id, deadline))
        except TimeoutError:
            raise CallTimeout(f"{method}: no answer from the agent within {seconds:g} s") from None
        if fault is not None:
            raise RemoteFault(*fault)
        return result

    def close(self) -> None:
        """Close the connection; this may be repeated."""
        self._socket.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- The session ---------------------------------------------------------------------------------

    def _connect(self, deadline: float) -> None:
        while True:
            self._set_timeout(deadline)
            try:
                self._socket.connect(self._path)
                return
            except BlockingIOError:  # its queue is full, and a socket with a timeout is not made to wait
                if time.monotonic() + _BUSY_PAUSE > deadline:
                    raise NotReady(f"{self._path}: the agent is busy with other programs") from None
                time.sleep(_BUSY_PAUSE)
            except OSError as error:
                raise _connect_error(self._path, error) from None

    def _greet(self, deadline: float) -> None:
        tag = self._next_tag()
        try:
            self._send(Request(tag, xmlrpc.encode_call("va.hello", [self._own.to_value()])), deadline)
            value, fault = xmlrpc.decode_response(self._answer(tag, None, deadline))
        except TimeoutError:
            raise _silent(self._path) from None
        except LinkBroken:
            raise _sent_away(self._path) from None
        if fault is not None:
            raise RemoteFault(*fault)
        self._meet(Hello.from_value(value))

    def _meet(self, hello: Hello) -> None:
        session = establish(self._own, hello)
        if self._session is not None and session.id != self._session.id:
            raise SessionReset("the agent was restarted")
        self._session = session

    # --- Messages ------------------------------------------------------------------------------------

    def _answer(self, tag: str, session: str | None, deadline: float) -> bytes:
        while True:
            self._set_timeout(deadline)
            try:
                data = self._socket.recv(_READ_SIZE)
            except ConnectionResetError:
                data = b""
            if not data:
                raise LinkBroken(f"{self._path}: the agent has closed the connection")
            answer = None
            for event in self._reader.feed(data):
                if isinstance(event, Response) and event.tag == tag and event.session == session:
                    answer = event.body
                elif isinstance(event, Request):
                    self._refuse(event, deadline)
                elif isinstance(event, Drop):
                    raise LinkBroken(f"{self._path}: what answers there does not speak virtagent's protocol")
            if answer is not None:
                return answer

    def _refuse(self, request: Request, deadline: float) -> None:
        """Answer what the agent asks: hello, its heartbeat, with hello; and all else with a no."""
        if request.session is None:
            try:
                self._meet(Hello.from_value(xmlrpc.decode_call(request.body)[1][0]))
                body = xmlrpc.encode_result(self._own.to_value())
            except (ProtocolError, Fault, IndexError) as error:
                body = xmlrpc.encode_fault(FaultCode.INVALID_REQUEST, str(error))
        else:
            body = xmlrpc.encode_fault(FaultCode.METHOD_NOT_FOUND, "this program offers no methods")
        self._send(Response(request.tag, body, request.session), deadline)

    def _send(self, message: Message, deadline: float) -> None:
        self._set_timeout(deadline)
        try:
            self._socket.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            raise LinkBroken(f"{self._path}: the agent has closed the connection") from None

    def _next_tag(self) -> str:
        self._tags += 1
        return f"{self._own.epoch}-{self._tags:08x}"

    def _set_timeout(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:  # settimeout(0) would mean non-blocking
            raise TimeoutError
        self._socket.settimeout(left)


# --- Errors ----------------------------------------------------------------------------------------------


def _connect_error(path: str, error: OSError) -> VirtagentError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
        return NotThere(f"{path}: the agent is not there; start it with: systemctl start va-guest")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Forbidden(f"{path}: {error.strerror}; its directory should have mode 0755")
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        return NotReady(f"{path}: the agent is busy with other programs")
    return LinkBroken(f"{path}: {error.strerror or error}")


def _silent(path: str) -> NotReady:
    return NotReady(f"{path}: the agent did not answer within {HELLO_TIME:g} s")


def _sent_away(path: str) -> NotReady:
    return NotReady(
        f"{path}: the agent has closed the connection before it said hello: too many programs of yours are "
        "connected, or it is ending"
    )
