"""A block that one task may be in at a time: what streams promise of sending and of receiving."""

from __future__ import annotations

import trio


class Exclusive:
    """A second task that enters is a bug of the caller, and raises.

    Args:
        complaint: the words of the `trio.BusyResourceError`.

    Attributes:
        taken: whether a task is in it.
    """

    def __init__(self, complaint: str) -> None:
        self._complaint = complaint
        self.taken = False

    def __enter__(self) -> None:
        if self.taken:
            raise trio.BusyResourceError(self._complaint)
        self.taken = True

    def __exit__(self, *_: object) -> None:
        self.taken = False
