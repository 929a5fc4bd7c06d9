"""The way to the host for what the agent itself has to tell it: the link for the guest's calls.

There is one such link, whichever channel it runs over; the service says which. With two ports it is not the
one that the host's calls come by.
"""

from __future__ import annotations

from typing import Protocol

from virtagent_protocol.deadline import call_deadline
from virtagent_protocol.errors import NotReady
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct

#: Seconds for the host to answer. It answers before it does anything that may take long.
ANSWER_TIME = 10.0


class HostLink(Protocol):
    """What is needed of a `Link`."""

    def open_stream(self) -> LinkStream:
        """As `Link.open_stream`."""

    async def call(self, method: str, *params: Struct) -> object:
        """As `Link.call`."""


class Host:
    """The host, as the agent's own calls reach it.

    Attributes:
        link: for them; None: there is none yet.
    """

    def __init__(self) -> None:
        self.link: HostLink | None = None

    def open_stream(self) -> LinkStream:
        """Return a new stream to name in a call. Raises NotReady."""
        return self._link().open_stream()

    async def call(self, method: str, params: Struct) -> object:
        """Call a method of the host. Raises VirtagentError."""
        with call_deadline(ANSWER_TIME, method):
            return await self._link().call(method, params)

    def _link(self) -> HostLink:
        if self.link is None:
            raise NotReady("the agent has no channel for calls to the host")
        return self.link


#: That of this process.
HOST = Host()
