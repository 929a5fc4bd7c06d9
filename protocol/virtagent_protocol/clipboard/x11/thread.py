"""A `Screen` in a thread of its own.

The thread is a daemon: a server that is stopped in the middle of an answer must not keep a process from
ending.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ...errors import LinkBroken, VirtagentError
from .screen import CONNECTION_ERRORS, Screen, connect

Work = Callable[[Screen], None]


class ScreenThread:
    """The callbacks are called in the thread; they hand on, and return at once.

    Args:
        name: of the display.
        on_open: the connection stands, or (with an error) there is none.
        on_change: the clipboard has changed.
        on_end: the connection is lost.
    """

    def __init__(
        self,
        name: str,
        on_open: Callable[[VirtagentError | None], None],
        on_change: Callable[[], None],
        on_end: Callable[[VirtagentError], None],
    ) -> None:
        self._name = name
        self._on_open, self._on_change, self._on_end = on_open, on_change, on_end
        self._work: deque[Work] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._stopped = self._ended = False
        threading.Thread(target=self._run, name=f"clipboard of {name}", daemon=True).start()

    def post(self, work: Work) -> None:
        """Have ``work(screen)`` called in the thread; it is not called if the connection is lost first."""
        self._work.append(work)
        self._wake()

    def stop(self) -> None:
        """End the thread, without waiting for it."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            if not self._ended:
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            with self._lock:
                self._ended = True
                os.close(self._wake_fd)

    def _serve(self) -> None:
        try:
            display = connect(self._name)
            screen = Screen(display, self._name, self._on_change)
        except VirtagentError as error:
            self._on_open(error)
            return
        except Exception as error:  # noqa: BLE001  # a server may answer anything at all
            self._on_open(LinkBroken(f"the X server of display {self._name} failed at once: {error!r}"))
            return
        self._on_open(None)
        try:
            self._loop(screen)
        except CONNECTION_ERRORS as error:
            self._fail(screen, screen.lost(error))
        except Exception as error:  # noqa: BLE001  # as above; whoever waits must hear of it
            self._fail(screen, screen.lost(error))
        finally:
            with suppress(*CONNECTION_ERRORS):  # it may be lost already
                display.close()

    def _fail(self, screen: Screen, error: LinkBroken) -> None:
        screen.fail(error)
        self._on_end(error)

    def _loop(self, screen: Screen) -> None:
        poll = select.poll()
        poll.register(screen.fileno(), select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        while not self._stopped:
            # Work first: answers to it may bring events along, which are then not on the socket any more.
            while self._work:
                self._work.popleft()(screen)
            screen.run_once()
            timeout = screen.timeout
            if not self._work:
                poll.poll(None if timeout is None else 1000 * timeout + 1)
            try:
                os.eventfd_read(self._wake_fd)
            except BlockingIOError:
                continue
