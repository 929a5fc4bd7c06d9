"""What a link counts: the figures of `va_status`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .values import Struct


@dataclass
class Counters:
    """Totals since the link object was made; they survive sessions and transports.

    Attributes:
        bytes_in, bytes_out: bytes of the transport.
        messages_in, messages_out: whole messages.
        sessions: sessions established.
        resets: sessions ended by a new hello or a lost transport.
        drops: messages and garbage dropped, by cause: those of `reader.DropCause`, ``session`` (of another
            session or none), ``late-reply``, ``unknown-reply``, ``duplicate-tag``, ``overload``, ``stream``.
        calls: our client jobs: ``answered``, ``cancelled``, ``reset``.
        served: the peer's jobs: ``ok``, ``fault``, ``cancelled``, ``reset``, ``internal``.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    sessions: int = 0
    resets: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)

    def to_value(self) -> Struct:
        """Return all figures as a struct."""
        return {
            "bytes-in": self.bytes_in,
            "bytes-out": self.bytes_out,
            "messages-in": self.messages_in,
            "messages-out": self.messages_out,
            "sessions": self.sessions,
            "resets": self.resets,
            "drops": dict(self.drops),
            "calls": dict(self.calls),
            "served": dict(self.served),
        }
