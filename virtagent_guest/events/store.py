"""The file in which events outlive the agent that put them in.

The rules:

1. It is in /run, which is memory: an event costs one short write, and nothing is ever waited for. It does not
   outlive the guest's own reboot; what happened in the guest before that is history that its host had a
   chance to hear.
2. Lines of JSON. The first says which log it is; each other is an event, or says what was confirmed or
   dropped. So an agent that is killed at any moment leaves a file that can be read: at most its last line is
   cut off, and that event was not sent yet.
3. It is written anew when it has grown to `SIZE_MAX`, under another name first.
4. It is the agent's alone (mode 0600): what programs tell is nobody else's business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from virtagent_protocol.errors import RemoteProtocolError, VirtagentError
from virtagent_protocol.events import GuestEvent, check_log
from virtagent_protocol.values import Value, as_struct, member

#: Bytes at which the file is written anew: some times what the log may hold, so that this is rare.
SIZE_MAX = 8 * 1024 * 1024


class StoreError(VirtagentError):
    """The file cannot be read or written."""


@dataclass(frozen=True)
class Kept:
    """What an agent has left behind.

    Attributes:
        log: the id of its log.
        confirmed: the number up to which the host has them.
        next: the number of the next event.
        events: those that are not confirmed, in order.
    """

    log: str
    confirmed: int
    next: int
    events: list[GuestEvent]


class Store:
    """The file.

    Args:
        path: where it is.

    Attributes:
        on_full: called when it is time for `rewrite`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._size = 0
        self.on_full: Callable[[], None] = lambda: None

    def load(self) -> Kept | None:
        """Return what the file holds; None: there is none.

        Raises:
            StoreError: it cannot be read, or it is not such a file.
        """
        try:
            # Nobody but the agent's user can put a file there; but what a link leads to is not its file.
            file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None
        with os.fdopen(file, "rb") as opened:
            lines = opened.read(4 * SIZE_MAX).split(b"\n")[:-1]
        try:
            return _parse([json.loads(line) for line in lines])
        except (ValueError, IndexError, RemoteProtocolError) as error:
            raise StoreError(f"{self._path} is damaged: {error}") from None

    def rewrite(self, log: str, confirmed: int, following: int, events: Iterable[GuestEvent]) -> None:
        """Replace the file by one that holds this.

        Args:
            log: the id of the log.
            confirmed: the number up to which events are confirmed.
            following: the number of the next event.
            events: those that are not confirmed.

        Raises:
            StoreError: it cannot be written.
        """
        lines = [{"log": log, "confirmed": confirmed, "next": following}, *map(GuestEvent.to_value, events)]
        data = b"".join(map(_line, lines))
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            file = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            self._close()
            self._file, self._size = file, 0
            self._append(data)
            temporary.rename(self._path)
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None

    def add(self, event: GuestEvent) -> None:
        """Write an event. Raises StoreError."""
        self._append(_line(event.to_value()))

    def confirm(self, sequence: int) -> None:
        """Write up to which number events are confirmed. Raises StoreError."""
        self._append(_line({"confirmed": sequence}))

    def drop(self, sequence: int) -> None:
        """Write that an event had no room. Raises StoreError."""
        self._append(_line({"dropped": sequence}))

    def discard(self) -> None:
        """Remove the file: it would tell a later agent what is no longer true."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        try:
            written = os.write(self._file, data)
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None
        if written != len(data):
            raise StoreError(f"{self._path}: no space left")
        self._size += written
        if self._size > SIZE_MAX:
            self._size = 0
            self.on_full()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _parse(lines: list[Value]) -> Kept:
    head = as_struct(lines[0], "the first line")
    confirmed, following = member(head, "confirmed", int), member(head, "next", int)
    events: dict[int, GuestEvent] = {}
    for line in lines[1:]:
        struct = as_struct(line, "a line")
        if "sequence" in struct:
            event = GuestEvent.from_value(struct)
            events[event.sequence] = event
            following = event.sequence + 1
        elif "dropped" in struct:
            events.pop(member(struct, "dropped", int), None)
        else:
            confirmed = member(struct, "confirmed", int)
    unconfirmed = [event for event in events.values() if event.sequence > confirmed]
    return Kept(check_log(member(head, "log", str)), confirmed, following, unconfirmed)
