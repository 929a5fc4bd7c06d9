"""Hooks: programs of the guest's administrator that make applications ready for a freeze (qemu-ga's
convention).

Each is called with one argument, ``freeze`` before the file systems are frozen and ``thaw`` after they were
thawed. There is one script, by default at qemu-ga's place, so that one written for it works here; and a
directory of programs, called in the order of their names, for thaw in the reverse order.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

#: Where qemu-ga's packages put it, and where their script looks for more.
DEFAULT_HOOK = "/etc/qemu/fsfreeze-hook"
DEFAULT_DIRECTORY = "/etc/virtagent/fsfreeze-hook.d"
#: Seconds for all hooks of one direction. A database that cannot come to rest in that time is not about to.
DEFAULT_TIMEOUT = 30

#: Left behind by editors and package managers, and run by none of their tools either.
_LEFTOVER = re.compile(r"^\.|[~#]$|\.(rpmnew|rpmsave|rpmorig|bak|orig|sample|disabled|dpkg-\w+)$")


@dataclass(frozen=True)
class HookSettings:
    """Which hooks there are.

    Attributes:
        hook: a program; the default one need not exist.
        directory: of programs; need not exist.
        timeout: seconds for all hooks of one direction together.
    """

    hook: str = DEFAULT_HOOK
    directory: str = DEFAULT_DIRECTORY
    timeout: int = DEFAULT_TIMEOUT


class HookFailed(Exception):
    """A hook failed, or was not done in time; the text names it and says how."""


class Hooks:
    """The hooks of one freeze: those that were begun by `freeze` are undone by `thaw`."""

    def __init__(self, settings: HookSettings) -> None:
        self._settings = settings
        self._begun: list[str] = []

    def freeze(self) -> None:
        """Call each hook with ``freeze``. The first that fails is the last.

        Raises:
            HookFailed: one failed. `thaw` is still due.
        """
        deadline = time.monotonic() + self._settings.timeout
        for hook in self.found():
            self._begun.append(hook)
            _call(hook, "freeze", deadline, self._settings.timeout)

    def thaw(self) -> list[str]:
        """Call each hook that was begun with ``thaw``, in the reverse order; return what failed of it."""
        deadline = time.monotonic() + self._settings.timeout
        failures = []
        while self._begun:
            try:
                _call(self._begun.pop(), "thaw", deadline, self._settings.timeout)
            except HookFailed as error:
                failures.append(str(error))
        return failures

    def assume_begun(self) -> None:
        """Let `thaw` call all hooks: another process, which is gone, has called them."""
        self._begun = self.found(strict=False)

    def found(self, *, strict: bool = True) -> list[str]:
        """Return the hooks in the order of ``freeze``.

        Args:
            strict: whether a hook that was asked for must be there.

        Raises:
            HookFailed: it is not.
        """
        hook = self._settings.hook
        hooks = [hook] if hook and os.access(hook, os.X_OK) else []
        if strict and not hooks and hook and (hook != DEFAULT_HOOK or os.path.exists(hook)):
            raise HookFailed(f"can't access fsfreeze hook '{hook}': it must be there and executable")
        return hooks + _programs(self._settings.directory)


def _programs(directory: str) -> list[str]:
    try:
        entries = sorted(Path(directory).iterdir())
    except OSError:
        return []
    return [
        str(entry)
        for entry in entries
        if not _LEFTOVER.search(entry.name) and entry.is_file() and os.access(entry, os.X_OK)
    ]


def _call(hook: str, argument: str, deadline: float, timeout: float) -> None:
    try:
        # A session of its own, so that all of it can be ended; what it says goes to the log.
        process = subprocess.Popen(
            [hook, argument], stdin=subprocess.DEVNULL, stdout=2, start_new_session=True, cwd="/"
        )
    except OSError as error:
        raise HookFailed(f"fsfreeze hook '{hook}' did not start: {error.strerror}") from None
    try:
        status = process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise HookFailed(
            f"fsfreeze hook '{hook} {argument}' was ended: the hooks were not done within {timeout:g} s"
        ) from None
    if status < 0:
        raise HookFailed(f"fsfreeze hook '{hook} {argument}' has terminated abnormally (signal {-status})")
    if status:
        raise HookFailed(f"fsfreeze hook '{hook} {argument}' has failed with status {status}")
