"""A nursery whose failure is the one error that its user must see."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from .errors import VirtagentError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


@asynccontextmanager
async def plain_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery. A `VirtagentError` that ends it comes out as itself, not in an exception group.

    Raises:
        VirtagentError: the first, if every task that failed did so with one, whether or not others were
            cancelled from outside at the same time: that is told again at the next checkpoint.
        BaseExceptionGroup: as trio's own nursery, in all other cases: something unexpected is among them.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        errors = [error for error in leaves(group) if not isinstance(error, trio.Cancelled)]
        if errors and all(isinstance(error, VirtagentError) for error in errors):
            raise errors[0] from None
        raise


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions of a group, of the groups in it and so on; or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
