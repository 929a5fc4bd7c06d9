"""What comes out of a nursery whose tasks fail in several ways at once."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from virtagent_protocol.errors import LinkBroken, VirtagentError
from virtagent_protocol.nursery import leaves, plain_nursery


async def fail(error: Exception) -> None:
    raise error


async def fail_when_cancelled(error: Exception) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise error


async def both_fail(one: Exception, other: Exception) -> None:
    async with plain_nursery() as nursery:
        nursery.start_soon(fail, one)
        nursery.start_soon(fail, other)


async def test_one_error_of_several_comes_out_as_itself() -> None:
    with pytest.raises(VirtagentError):
        await both_fail(LinkBroken("one"), LinkBroken("other"))


async def test_so_does_one_beside_a_cancellation_from_outside() -> None:
    async def one_fails(scope: trio.CancelScope) -> None:
        async with plain_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_when_cancelled, LinkBroken("the peer is gone"))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()

    with trio.CancelScope() as scope, pytest.raises(LinkBroken, match="the peer is gone"):
        await one_fails(scope)


async def test_nothing_unexpected_is_hidden() -> None:
    with pytest.raises(Exception, match="Exceptions from Trio nursery") as caught:
        await both_fail(LinkBroken("one"), ZeroDivisionError())
    assert {type(error) for error in leaves(caught.value)} == {LinkBroken, ZeroDivisionError}


async def test_a_cancellation_alone_stays_one() -> None:
    with trio.CancelScope() as scope:
        async with plain_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
    assert scope.cancelled_caught
