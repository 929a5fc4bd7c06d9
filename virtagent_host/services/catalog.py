"""The services that there are on this host: executables in a directory, functions of Python's entry points.

The rules:

1. The name of an executable is that of its service. One that others could change is no service (`trusted`).
2. A function is an entry point of the group ``virtagent.services``; its package was installed by whoever may
   do that. An executable of the same name goes first.
3. Nothing is remembered: a service that is added is there with the next call.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtagent_protocol.errors import FailureKind, VirtagentError

from .file import ServicesDir
from .request import SERVICE_NAME
from .trusted import Untrusted, check_trusted

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "virtagent.services"


class Unusable(VirtagentError):
    """There is something of that name, and it cannot be run. The message is for this host's own log."""

    kind = FailureKind.BROKEN


@dataclass(frozen=True)
class Program:
    """An executable; *path* has no links in it."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Function:
    """A function, not imported yet."""

    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"{self.entry_point.value} (entry point)"

    def load(self) -> Callable[..., Any]:
        """Import it. It may take a while. Raises Unusable."""
        try:
            function = self.entry_point.load()
        except Exception as error:
            raise Unusable(f"{self.entry_point.value} cannot be imported: {error}") from error
        if not callable(function):
            raise Unusable(f"{self.entry_point.value} is no function")
        loaded: Callable[..., Any] = function
        return loaded


def find_service(directory: ServicesDir, name: str) -> Program | Function | None:
    """Return the service of that name, or None. It reads the file system, so it is for a thread.

    Raises:
        Unusable: see there.
    """
    path = os.path.join(directory.programs, name)
    if os.path.lexists(path):
        return _program(path)
    return next((Function(point) for point in _entry_points() if point.name == name), None)


def all_services(directory: ServicesDir) -> Iterator[tuple[str, Program | Function | Unusable]]:
    """Yield names, in order, with what is there."""
    try:
        names = set(filter(SERVICE_NAME.fullmatch, os.listdir(directory.programs)))
    except OSError:
        names = set()
    names |= {point.name for point in _entry_points()}
    for name in sorted(names):
        try:
            found = find_service(directory, name)
        except Unusable as error:
            yield name, error
        else:
            if found is not None:
                yield name, found


def _program(path: str) -> Program:
    try:
        real = check_trusted(path)
        mode = os.stat(real).st_mode
    except Untrusted as error:
        raise Unusable(str(error)) from error
    except OSError as error:
        raise Unusable(f"{path} cannot be used: {error.strerror}") from error
    if not stat.S_ISREG(mode) or not os.access(real, os.X_OK):
        raise Unusable(f"{path} is no executable file (run: chmod +x {path})")
    return Program(real)


def _entry_points() -> Iterator[EntryPoint]:
    from importlib.metadata import entry_points

    return iter(entry_points(group=GROUP))
