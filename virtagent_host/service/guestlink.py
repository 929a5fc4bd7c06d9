"""What the service needs of the link to a guest's agent, whichever agent that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from virtagent_protocol.counters import Counters
from virtagent_protocol.linkstate import LinkEvent, Status
from virtagent_protocol.session import Session
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct, Value


class GuestLink(Protocol):
    """A virtagent `Link`, or a `QgaLink`; `Link` says what each member is."""

    counters: Counters

    @property
    def status(self) -> Status:
        """State, reason and since when."""

    @property
    def session(self) -> Session | None:
        """The session that stands, if one does."""

    def figures(self) -> Struct:
        """Return counters and fill levels, for `va_status`."""

    def note_error(self, text: str) -> None:
        """Remember what went wrong, for `figures`."""

    async def wait_for(self, wanted: Callable[[Status], bool]) -> Status:
        """Wait until a status is wanted, and return it."""

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the guest. Raises `VirtagentError`."""

    def open_stream(self) -> LinkStream:
        """Return a new stream. Raises `VirtagentError`."""

    def hint(self, event: LinkEvent, reason: str) -> None:
        """Tell what is known of the port from elsewhere."""

    def pause(self, reason: str) -> None:
        """The VM was stopped."""

    def resume(self) -> None:
        """The VM runs again."""

    async def run(self, stream: trio.abc.Stream) -> None:
        """Serve one open transport until it fails. Raises `LinkBroken`."""
