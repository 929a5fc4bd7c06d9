"""A client of the bridge for those who call the table of commands without a bridge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from virtagent_host.commands import InvalidArguments


class NobodysClient:
    """A client that has handed over nothing, and is told nothing."""

    def take_fd(self, name: str) -> int:
        raise InvalidArguments(name)

    def emit(self, name: str, data: dict[str, object]) -> None:
        raise AssertionError(name)

    async def events_sent(self) -> None:
        pass

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        raise AssertionError(function)
