"""The terminal of `va-host top`: keys, size, signals; and one screen in a pipe.

The rules:

1. However it ends, by a key, a signal, an error or the terminal's own end, the terminal is as it was before.
   A signal then does what it would have done.
2. Ctrl-Z gives the terminal back for as long as the process is stopped.
3. What is drawn has the size that the terminal has at that moment.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import time
from dataclasses import dataclass, replace

from rich.console import Console
from rich.live import Live

from ..client import no_such_vm
from ..terminal import Signals, raw_terminal
from .figures import ORDERS
from .screen import frame
from .watcher import Watch

#: Seconds between two screens while nothing is pressed.
_REFRESH = 0.5
#: Seconds that one screen waits for the VMs' first figures.
_ONCE_TIME = 6.0
_LOOK_AGAIN = 0.05
#: Characters of a line that goes into a pipe.
_PIPE_WIDTH = 120

_KEYS = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_ORDER_KEYS = {b"n": "name", b"c": "cpu", b"m": "memory", b"p": "pressure", b"d": "disk", b"t": "network"}
_SCROLL_KEYS = {b"j": 1, b"k": -1, b"\x1b[B": 1, b"\x1b[A": -1, b"\x1bOB": 1, b"\x1bOA": -1}
_QUIT = b"q"

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class View:
    """What is shown of the rows: `frame` says what each member means."""

    order: str
    turned: bool = False
    first: int = 0


def press(view: View, key: bytes, rows: int) -> View | None:
    """Return the view after a key; None: it ends.

    Args:
        view: before.
        key: the bytes that it sends.
        rows: how many there are.
    """
    if key in (_QUIT, b"Q"):
        return None
    if key in _ORDER_KEYS:
        return replace(view, order=_ORDER_KEYS[key], first=0)
    if key == b"s":
        following = ORDERS[(ORDERS.index(view.order) + 1) % len(ORDERS)]
        return replace(view, order=following, first=0)
    if key == b"r":
        return replace(view, turned=not view.turned, first=0)
    first = view.first + _SCROLL_KEYS.get(key, 0)
    return replace(view, first=min(max(first, 0), max(rows - 1, 0)))


def run_once(watch: Watch, order: str) -> None:
    """Print one screen, when each VM has something to say, or after `_ONCE_TIME` seconds."""
    deadline = time.monotonic() + _ONCE_TIME
    while (rows := watch.rows()) and not all(row.settled for row in rows):
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK_AGAIN)
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    drawn = frame(
        rows,
        width=console.width,
        height=None,
        order=order,
        plain=_is_plain(console),
        empty=no_such_vm(watch.runtime),
    )
    console.print(drawn)


def run_live(watch: Watch, order: str) -> None:
    """Show a live screen until it is quit.

    Raises:
        KeyboardInterrupt: by Ctrl-C.
    """
    view: View | None = View(order)
    with Signals(*_ENDING, signal.SIGTSTP, signal.SIGWINCH, signal.SIGCONT) as signals:
        while view is not None:
            view, ended_by = _show(watch, view, signals)
            if ended_by is signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)  # returns when it goes on
            elif ended_by is not None:
                break
    if ended_by is signal.SIGINT:
        raise KeyboardInterrupt
    if ended_by is not None:
        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)


def _show(watch: Watch, view: View, signals: Signals) -> tuple[View | None, signal.Signals | None]:
    """Show the screen until a key quits it, or a signal that ends or stops it; return both."""
    console = Console(highlight=False)
    keyboard = sys.stdin.fileno()
    plain = _is_plain(console)
    with (
        raw_terminal(keyboard, keys_only=True),
        Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False) as live,
    ):
        while True:
            rows = watch.rows()
            width, height = console.size
            drawn = frame(
                rows,
                width=width,
                height=height,
                order=view.order,
                turned=view.turned,
                first=view.first,
                plain=plain,
                empty=f"{no_such_vm(watch.runtime)}; waiting",
            )
            live.update(drawn, refresh=True)
            readable = select.select([keyboard, signals], [], [], _REFRESH)[0]
            for number in signals.take():
                if number is signal.SIGTSTP or number in _ENDING:
                    return view, number
            if keyboard not in readable:
                continue
            typed = b""
            with contextlib.suppress(OSError):  # the terminal is gone
                typed = os.read(keyboard, 256)
            if not typed:
                return None, None
            for key in _KEYS.findall(typed):
                following = press(view, key, len(rows))
                if following is None:
                    return None, None
                view = following


def _is_plain(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")
