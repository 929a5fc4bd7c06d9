"""``[[forward]]`` of guest.toml; read before trio is imported."""

from __future__ import annotations

from dataclasses import dataclass

from virtagent_protocol.address import Address


@dataclass(frozen=True)
class ForwardSettings:
    """One entry.

    Attributes:
        listen: where programs of the guest connect.
        service: the host's name for what they reach.
    """

    listen: Address
    service: str
