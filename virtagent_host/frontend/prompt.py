"""The monitor's prompt on a terminal: line editing, history and completion, by readline.

The history is kept in ``$XDG_STATE_HOME/virtagent`` (``~/.local/state/virtagent``), readable by its owner
only, because a line may hold a password; where that cannot be written there is none.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import readline
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from virtagent_protocol.errors import VirtagentError

from ..commands import Command
from .vocabulary import find_command, names, typed_arguments

#: Lines of history; a number nobody scrolls past.
HISTORY_MAX = 1000
#: Seconds for which the names of a guest's extensions are taken to be the same.
KEPT = 5.0


class Completer:
    """Completes command names, the choices of arguments, and QEMU's own commands.

    Args:
        hmp: runs a line of QEMU's human monitor; its ``help`` says which commands there are.
        extensions: returns the commands that are extensions of the guest now.
    """

    def __init__(self, hmp: Callable[[str], str], extensions: Callable[[], list[Command]] = list) -> None:
        self._hmp = lru_cache(maxsize=None)(hmp)
        self._extensions = extensions
        self._kept: list[str] = []
        self._kept_until = 0.0

    def __call__(self, text: str, state: int) -> str | None:
        """Return the completion number *state* of the word *text* (readline's form)."""
        before = readline.get_line_buffer()[: readline.get_begidx()].split()
        found = [word for word in self.candidates(before) if word.startswith(text)]
        return f"{found[state]} " if state < len(found) else None

    def candidates(self, before: list[str]) -> list[str]:
        """Return the words that may follow those already on the line."""
        if not before:
            return self._names() + self._qemu_commands("help", 0)
        if before == ["info"]:
            return self._qemu_commands("help info", 1)
        try:
            arguments = typed_arguments(find_command(before[0]))
        except VirtagentError:
            return []
        position = len(before) - 1
        return list(arguments[position].choices) if position < len(arguments) else []

    def _names(self) -> list[str]:
        # readline asks again for each candidate; the guest is asked for the first only.
        now = time.monotonic()
        if now > self._kept_until:
            self._kept = [command.name for command in self._extensions()]
            self._kept_until = now + KEPT
        return names() + self._kept

    def _qemu_commands(self, line: str, position: int) -> list[str]:
        # Each line of QEMU's help is "name|short [arguments] -- what it does".
        try:
            entries = [entry.split(" -- ")[0].split() for entry in self._hmp(line).splitlines()]
        except VirtagentError:
            return []
        return [name for words in entries if len(words) > position for name in words[position].split("|")]


def typed_lines(prompt: str, completer: Completer) -> Iterator[str]:
    """Yield the lines typed at *prompt* until Ctrl-D; Ctrl-C drops the line it is on."""
    readline.set_completer(completer)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    _keep_history()
    while True:
        try:
            yield input(prompt)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _keep_history() -> None:
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(base, "virtagent", "monitor_history")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made by us first, because readline would make it readable for all.
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        readline.read_history_file(file)
    except OSError:
        return
    readline.set_history_length(HISTORY_MAX)
    atexit.register(_write_history, file)


def _write_history(file: Path) -> None:
    with contextlib.suppress(OSError):
        readline.write_history_file(file)
