"""``[events]`` of guest.toml: which built-in events are told; read before anything else is known."""

from __future__ import annotations

from dataclasses import dataclass

#: All built-in events, as docs/events.md lists them.
NAMES = (
    "shutdown-begun",
    "boot-finished",
    "addresses-changed",
    "user-logged-in",
    "user-logged-out",
    "filesystem-filling",
    "filesystem-ok",
    "oom-kill",
    "unit-failed",
)

#: What `EventSettings.threshold` may be, in percent. At 100 it would be told when it is too late.
THRESHOLD_MIN, THRESHOLD_MAX = 1, 99


@dataclass(frozen=True)
class EventSettings:
    """Which built-in events are told.

    Attributes:
        off: names of those that are not.
        threshold: percent of a file system's space or inodes at which it is filling.
    """

    off: tuple[str, ...] = ()
    threshold: int = 90

    def on(self, *names: str) -> bool:
        """Whether any of these is told."""
        return not set(names) <= set(self.off)
