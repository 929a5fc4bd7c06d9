"""A caller's deadline, with virtagent's own error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from .errors import CallTimeout


@contextmanager
def call_deadline(seconds: float, what: str) -> Iterator[None]:
    """Cancel the body after so many seconds of the monotonic clock.

    Args:
        seconds: any number; infinity for no deadline.
        what: what is awaited, for the message, such as ``"va.ping"``.

    Raises:
        CallTimeout: the deadline passed.
    """
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise CallTimeout(f"{what}: no answer within {seconds:g} s") from None
