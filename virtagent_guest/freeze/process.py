"""The freezer: a process that freezes file systems, keeps the lease, and thaws them again.

The rules:

1. It is not the agent, so the agent may be killed. It is not of the agent's control group either where
   systemd starts it (va-guest-freezer.socket): what kills the agent's whole service does not kill it.
2. One connection, one freeze. Requests and answers are lines of JSON; the agent asks, in this order:
   ``freeze``, any number of ``renew``, ``thaw``. What ends a freeze without ``thaw`` is told on the same
   connection.
3. A freeze ends, whatever comes first: ``thaw``; the time since the last ``renew`` is longer than the lease;
   its whole time is over; *the connection ends*; SIGTERM. The agent's end ends it at once, although some of
   the lease may be left: nobody could thaw before that, and whoever makes a snapshot learns, by the answer to
   its ``va.thaw``, that the file systems had been thawed before.
4. While something is frozen it opens, writes and logs nothing: its memory is locked, its files are open. The
   thread that freezes may hang in the kernel; the one that keeps the time does not wait for it.
5. A freeze leaves a note in /run while it lasts. The next freezer that finds one (systemd starts it when one
   was killed: ExecStopPost=) thaws everything before it does anything else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from virtagent_protocol.text import visible_line

from . import ioctls
from .freezing import FreezeFailed, Freezing, thaw_everything
from .hooks import HookFailed, Hooks, HookSettings
from .mounts import mounts

#: Where the note is: never on a file system that can be frozen.
NOTE = Path("/run/virtagent-freezer")
#: Where systemd listens for it.
SOCKET = "/run/virtagent-freezer.sock"

#: Bytes of one request, with all its mount points.
REQUEST_MAX = 1 << 20
#: Bytes of the freezing thread's stack: with locked memory the default, 8 MiB, would all be there.
_STACK = 256 * 1024
#: The first file descriptor that systemd passes (sd_listen_fds(3)).
_LISTEN_FD = 3


def main(arguments: Sequence[str]) -> int:
    """Be a freezer: on a connection that is stdin or systemd's, or, for ``recover``, without one."""
    parser = argparse.ArgumentParser(prog="va-guest --freezer", allow_abbrev=False)
    parser.add_argument("mode", choices=["serve", "recover"], help="recover: undo what a killed one has left")
    parser.add_argument("--hook", default=None)
    parser.add_argument("--hook-dir", default=None)
    parser.add_argument("--hook-timeout", type=int, default=None)
    options = parser.parse_args(arguments)
    from ..config import ConfigError

    try:
        hooks = Hooks(_hook_settings(options))
    except ConfigError as error:
        _log(str(error))
        if options.mode != "recover":
            return 2
        hooks = Hooks(HookSettings())  # thawing must not wait for somebody who mends the configuration
    if options.mode == "recover":
        recover(hooks)
        return 0
    stop = _stop_pipe()
    with _connection() as connection:
        Freezer(connection, hooks, stop).serve()
    return 0


def _hook_settings(options: argparse.Namespace) -> HookSettings:
    """Return what the command line says of the hooks, and the agent's configuration for the rest."""
    if options.hook is None:
        from ..config import load

        return load(None).hooks
    return HookSettings(options.hook, options.hook_dir, options.hook_timeout)


def _connection() -> socket.socket:
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        with socket.socket(fileno=_LISTEN_FD) as listener:
            return listener.accept()[0]
    return socket.socket(fileno=os.dup(0))


def _stop_pipe() -> int:
    """Return a descriptor that becomes readable by SIGTERM or SIGINT."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reader


def recover(hooks: Hooks) -> int:
    """Undo what a freezer that was killed has left (rule 5); return how many file systems were thawed."""
    if not NOTE.exists():
        return 0
    count = thaw_everything(mounts())
    hooks.assume_begun()
    failures = hooks.thaw()
    NOTE.unlink(missing_ok=True)
    _log(f"thawed {count} file systems that a killed freezer has left frozen", *failures)
    return count


class Freezer:
    """One connection's worth of freezing.

    Args:
        connection: to the agent.
        hooks: what to call before and after.
        stop: readable when this process is to end.
    """

    def __init__(self, connection: socket.socket, hooks: Hooks, stop: int) -> None:
        self._connection = connection
        self._hooks = hooks
        self._stop = stop
        self._buffer = b""
        #: Why no more requests will come.
        self._end: str | None = None

    def serve(self) -> None:
        """Serve the connection to its end."""
        self._tell({"ready": True, "recovered": recover(self._hooks)})
        while (request := self._next(math.inf)) is not None:
            if request.get("do") == "freeze":
                self._freeze(request)
                return
            if request.get("do") == "thaw":
                # Nothing of ours is frozen; but the guest's administrator may have frozen something.
                self._tell({"thawed": thaw_everything(mounts()), "why": "asked", "failures": []})
            else:
                self._tell({"error": f"not frozen: {request.get('do')!r} makes no sense"})

    def _freeze(self, request: dict[str, Any]) -> None:
        lease, duration = _seconds(request, "lease"), _seconds(request, "duration")
        freezing = None
        try:
            self._hooks.freeze()
            self._look()
            if self._end is not None:
                raise FreezeFailed(f"not frozen: {self._end}")
            freezing = Freezing(mounts(), request.get("mountpoints"))
            why = self._hold(freezing, lease, duration)
        except (HookFailed, FreezeFailed, OSError) as error:
            # OSError: the mount table, or the note. Nothing was frozen by then.
            failures = self._hooks.thaw()
            self._tell({"error": str(error), "failures": failures})
            _log(f"not frozen: {error}", *failures)
        else:
            thawed = self._thawed
            failures = self._hooks.thaw()
            self._tell({"thawed": thawed, "why": why, "failures": failures})
            _log(f"thawed {thawed} file systems: {why}", *failures)
        finally:
            if freezing is not None:
                freezing.close()

    def _hold(self, freezing: Freezing, lease: float, duration: float) -> str:
        """Freeze, and hold it until something ends it (rule 3); return what did. Everything is thawed
        then."""
        _note()
        threading.stack_size(_STACK)
        unlocked = ioctls.lock_memory()
        done_reader, done_writer = os.pipe2(os.O_CLOEXEC)
        worker = threading.Thread(target=_run, args=[freezing, done_writer], daemon=True)
        self._thawed = 0
        began = renewed = time.monotonic()
        worker.start()
        try:
            told = False
            while True:
                end = min(began + duration, renewed + lease)
                if not told and not worker.is_alive():
                    if freezing.error is not None:
                        raise freezing.error
                    self._tell({"frozen": freezing.frozen, "skipped": freezing.skipped})
                    if not freezing.frozen:
                        return "nothing was frozen"
                    told = True
                request = self._next(end, *([] if told else [done_reader]))
                if self._end is not None:
                    return self._end
                if time.monotonic() >= end:
                    over = f"its time is over ({duration:g} s)"
                    return over if end == began + duration else f"the lease was not renewed for {lease:g} s"
                if request is None:
                    continue  # the thread is done
                if request.get("do") == "thaw":
                    return "asked"
                renewed = time.monotonic()
                if request.get("do") == "renew" and told:
                    self._tell({"renewed": min(began + duration - renewed, lease)})
        finally:
            self._thawed = freezing.thaw(worker)
            NOTE.unlink(missing_ok=True)
            os.close(done_reader)
            if unlocked:
                _log(f"its memory could not be locked: {unlocked}")

    # --- The connection --------------------------------------------------------------------------

    def _next(self, until: float, *others: int) -> dict[str, Any] | None:
        """Return the next request; None at *until*, when one of *others* is readable, or when no more
        comes."""
        while self._end is None:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                return self._request(line)
            ready = self._look(max(until - time.monotonic(), 0), *others)
            if not ready or set(ready) & set(others):
                return None
        return None

    def _look(self, timeout: float = 0, *others: int) -> list[int]:
        """Wait for something to happen, and read what came; return the readable descriptors."""
        wanted = [self._connection.fileno(), self._stop, *others]
        ready = select.select(wanted, [], [], None if timeout == math.inf else timeout)[0]
        if self._stop in ready:
            self._end = "the freezer was told to end"
        elif wanted[0] in ready:
            try:
                data = self._connection.recv(1 << 16)
            except OSError:
                data = b""
            self._buffer += data
            if not data or len(self._buffer) > REQUEST_MAX:
                self._end = "the agent has ended"
        return ready

    def _request(self, line: bytes) -> dict[str, Any]:
        request = json.loads(line)
        return request if isinstance(request, dict) else {}

    def _tell(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        # An agent that is stopped reads nothing, but a few lines always fit. One that is gone `_look` finds.
        with suppress(OSError):
            self._connection.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _run(freezing: Freezing, done: int) -> None:
    try:
        freezing.run()
    finally:
        os.close(done)


def _note() -> None:
    try:
        NOTE.write_text(f"{os.getpid()}\n")
    except OSError as error:
        # Only who kills this very process notices.
        _log(f"{NOTE} cannot be written: {error.strerror}")


def _seconds(request: dict[str, Any], name: str) -> float:
    """Return a time of the request; 0 and nothing are without end."""
    value = request.get(name) or math.inf
    return float(value)


def _log(*lines: str) -> None:
    for line in lines:
        print(f"va-guest freezer: {visible_line(line)}", file=sys.stderr, flush=True)
