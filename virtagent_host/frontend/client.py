"""A client of the bridge: what `va-host ping` and its like use to talk to a running va-host.

The rules:

1. Plain blocking socket and json, no event loop: as a whole process a command must feel instant.
2. The bridge is a QMP server that ends each message with CRLF, and JSON text holds no raw newline, so
   a line is a message. (QEMU's own monitor keeps to that, too.)
3. Every wait has a deadline. A call that missed it leaves its answer behind in the stream, so the
   connection is used for nothing else afterwards.
4. A QMP error says in its description which kind of failure it is (``"not ready: …"``); here it becomes an
   error of that kind again. An error without such a word is QEMU's own: refused.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from virtagent_protocol.errors import (
    CallTimeout,
    FailureKind,
    Forbidden,
    LinkBroken,
    NotThere,
    VirtagentError,
)

from ..qemu.errors import QemuError
from ..runtime import RuntimeDir

#: Seconds for connecting and negotiating. Both are answered by va-host itself, without QEMU or the guest.
CONNECT_TIMEOUT = 5.0
#: Seconds added to a `va_*` command's own timeout: the service's answer says more than our deadline could.
GRACE = 2.0

_READ_SIZE = 1 << 16
#: Events kept while a command runs, the latest ones: somebody who wants them all reads `events`.
_EVENTS_KEPT = 1000


class BridgeError(QemuError):
    """The bridge answered with a QMP error: `to_qmp` undone.

    Its `desc` is without the word for the kind. It may hold a guest's words.
    """

    def __init__(self, error_class: str, desc: str) -> None:
        self.kind, message = _split_kind(desc)
        super().__init__(error_class, message)


class ConnectionEnded(LinkBroken):
    """va-host closed the connection: the VM was detached, or QEMU ended."""


def _split_kind(desc: str) -> tuple[FailureKind, str]:
    word, colon, rest = desc.partition(": ")
    if colon:
        for kind in FailureKind:
            if kind.value == word:
                return kind, rest
    return FailureKind.REFUSED, desc


class VmClient:
    """One connection to a VM's bridge, capabilities negotiated.

    Use `connect`; then `execute` and `events` as often as needed, from one thread.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        self._name = name
        self._buffer = bytearray()
        self._searched = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._last_id = 0
        #: What goes with the next command.
        self._handing: int | None = None
        #: The user session in the guest that every `va_*` command is for, or None.
        self.session: str | None = None

    @classmethod
    def connect(cls, runtime: RuntimeDir, name: str, *, timeout: float = CONNECT_TIMEOUT) -> VmClient:
        """Connect to the bridge of VM *name* and negotiate.

        Raises:
            NotThere: no va-host serves that VM; the message lists those that are attached.
            Forbidden: the socket belongs to another user.
            CallTimeout: va-host did not answer in *timeout* seconds.
            LinkBroken: what answers is not a bridge.
            BridgeError: too many clients are connected.
        """
        deadline = time.monotonic() + timeout
        path = runtime.vm(name).bridge
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout)
            sock.connect(os.fspath(path))
            client = cls(sock, name)
            greeting = client._receive(deadline)
            if "error" in greeting:
                _result(greeting)  # raises: the bridge has no place for another client
            if "QMP" not in greeting:
                raise LinkBroken(f"{path}: this is not a QMP server, its greeting is {greeting!r:.80}")
            client.execute("qmp_capabilities", timeout=timeout)
        except OSError as error:
            sock.close()
            raise _connect_error(error, runtime, name) from None
        except BaseException:
            sock.close()
            raise
        return client

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float | None
    ) -> Any:
        """Run a command and return what its answer's ``return`` member holds.

        Events that arrive meanwhile are kept for `events`.

        Args:
            command: of QEMU or ``va_*``.
            arguments: its arguments, JSON values.
            timeout: seconds; None waits as long as it takes.

        Raises:
            BridgeError: the command was answered with an error.
            CallTimeout: it was not answered in time. Close the client then (rule 3).
            ConnectionEnded: va-host closed the connection.
        """
        self._last_id += 1
        request: dict[str, object] = {"execute": command, "id": self._last_id}
        if self.session is not None and command.startswith("va_"):
            arguments = {**(arguments or {}), "session": self.session}
        if arguments:
            request["arguments"] = arguments
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._send(json.dumps(request).encode() + b"\r\n", deadline)
            while True:
                message = self._receive(deadline)
                if "event" in message:
                    self._events.append(message)
                elif message.get("id") == self._last_id:
                    return _result(message)
        except TimeoutError:
            raise CallTimeout(f"{command} was not answered within {timeout:g} s by '{self._name}'") from None

    def send_fd(self, name: str, fd: int, *, timeout: float = CONNECT_TIMEOUT) -> None:
        """Hand a file descriptor over, for a `va_*` command that takes it by this name.

        It stays open here, and may be closed at once.

        Args:
            name: begins with ``va_``.
            fd: the descriptor.
            timeout: seconds.

        Raises:
            VirtagentError: as `execute`.
        """
        self._handing = fd
        try:
            self.execute("getfd", {"fdname": name}, timeout=timeout)
        finally:
            self._handing = None

    def fileno(self) -> int:
        """Return the connection's descriptor, for those who wait for events among other things."""
        return self._sock.fileno()

    def pending_events(self) -> list[dict[str, Any]]:
        """Return the events that are there, without waiting for any.

        Raises:
            ConnectionEnded: va-host closed the connection.
        """
        while select.select([self._sock], [], [], 0)[0]:
            message = self._receive(None)
            if "event" in message:
                self._events.append(message)
        while b"\n" in self._buffer:
            message = self._receive(None)
            if "event" in message:
                self._events.append(message)
        events, self._events = list(self._events), deque(maxlen=_EVENTS_KEPT)
        return events

    def events(self, *, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """Yield events, QEMU's and ``VA_*``, as they come: ``{"event", "data", "timestamp"}``.

        Ends when va-host closes the connection (it was detached, or QEMU ended).

        Raises:
            CallTimeout: *timeout* seconds passed since the first was asked for.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._events:
                yield self._events.popleft()
            try:
                message = self._receive(deadline)
            except ConnectionEnded:
                return
            except TimeoutError:
                raise CallTimeout(f"no such event of '{self._name}' within {timeout:g} s") from None
            if "event" in message:
                yield message

    def close(self) -> None:
        """Close the connection; this may be repeated."""
        self._sock.close()

    def __enter__(self) -> VmClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes, deadline: float | None) -> None:
        self._set_timeout(deadline)
        try:
            if self._handing is not None:
                # With the first byte; what did not fit follows.
                fds, self._handing = [self._handing], None
                data = data[socket.send_fds(self._sock, [data], fds) :]
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended() from None

    def _receive(self, deadline: float | None) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            # What was searched once holds no newline: a 2 MiB line must not be searched 32 times.
            self._searched = len(self._buffer)
            self._set_timeout(deadline)
            try:
                data = self._sock.recv(_READ_SIZE)
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._ended()
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise LinkBroken(f"the bridge of '{self._name}' sent what is not QMP: {line!r:.80}")
        return message

    def _set_timeout(self, deadline: float | None) -> None:
        if deadline is None:
            self._sock.settimeout(None)
            return
        left = deadline - time.monotonic()
        if left <= 0:  # settimeout(0) would mean non-blocking.
            raise TimeoutError
        self._sock.settimeout(left)

    def _ended(self) -> ConnectionEnded:
        return ConnectionEnded(
            f"va-host closed the connection to '{self._name}': it was detached, or QEMU ended"
        )


def _result(message: dict[str, Any]) -> Any:
    error = message.get("error")
    if error is None:
        return message.get("return")
    raise BridgeError(str(error.get("class", "GenericError")), str(error.get("desc", "")))


def _connect_error(error: OSError, runtime: RuntimeDir, name: str) -> VirtagentError:
    path = runtime.vm(name).bridge
    # EAGAIN: its listen queue is full, for it does not accept anybody.
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        return CallTimeout(f"va-host of '{name}' does not answer on {path}; is it stopped?")
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
        return NotThere(no_such_vm(runtime, name))
    if error.errno in (errno.EACCES, errno.EPERM):
        return Forbidden(f"{path}: {error.strerror}; run this as the user who runs va-host")
    return LinkBroken(f"{path}: {error.strerror}")


def no_such_vm(runtime: RuntimeDir, name: str = "") -> str:
    """Return the words for a VM that is not attached: which ones are, and how to attach one."""
    others = ", ".join(runtime.attached())
    if others:
        who = f"no VM named '{name}' is attached; attached: {others}"
    elif name:
        who = f"no VM named '{name}' is attached, nor any other, in {runtime.path}"
    else:
        who = f"no VM is attached in {runtime.path}"
    return f"{who}; start one with: va-host attach --qmp SOCKET --name NAME"
