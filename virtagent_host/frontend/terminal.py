"""The user's terminal, while it is another machine's: raw, and given back as it was."""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: Rows and columns of a terminal that nobody looks at.
_NO_SIZE = (24, 80)


@contextmanager
def raw_terminal(fd: int, *, keys_only: bool = False) -> Iterator[None]:
    """Let the terminal at *fd* pass on every key, and restore it whatever happens. Nothing if it is none.

    Args:
        fd: the terminal.
        keys_only: pass each key on at once, without an echo, and leave all else: Ctrl-C still interrupts.
    """
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        yield
        return
    (tty.setcbreak if keys_only else tty.setraw)(fd, termios.TCSADRAIN)
    try:
        yield
    finally:
        with suppress(termios.error):  # it may be gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def size_of(*fds: int) -> tuple[int, int]:
    """Return rows and columns of the first of these that is a terminal."""
    for fd in fds:
        with suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            if rows and columns:
                return rows, columns
    return _NO_SIZE


class Signals:
    """Signals that are taken out one by one, instead of ending the process. Within a ``with`` block.

    Args:
        numbers: which.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._caught: deque[signal.Signals] = deque()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._catch)
        self._wakeup_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]
        os.close(self._woken)
        os.close(self._waker)

    def fileno(self) -> int:
        """Return what becomes readable when there is a signal."""
        return self._woken

    def take(self) -> list[signal.Signals]:
        """Return those that came, and forget them."""
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)
        caught = list(self._caught)
        self._caught.clear()
        return caught

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._caught.append(signal.Signals(number))
