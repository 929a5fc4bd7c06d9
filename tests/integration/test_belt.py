"""What passes between a task and a thread: in order, bounded, and neither is left waiting."""

from __future__ import annotations

import threading

import pytest
import trio

from virtagent_guest.belt import FromThread, ToThread

#: Seconds for anything here, which takes milliseconds.
PATIENCE = 20


async def test_what_a_thread_makes_is_taken_in_order_and_it_waits_for_room() -> None:
    belt = FromThread[int](2)
    ahead: list[int] = []
    taken = 0

    def make() -> None:
        for number in range(1000):
            assert belt.put(number)
            # One may have been taken that is not counted yet.
            ahead.append(number + 1 - taken)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, make)
            for number in range(1000):
                assert await belt.take() == number
                taken += 1
    assert max(ahead) <= 3


async def test_a_thread_that_waits_for_room_is_told_when_nobody_takes_any_more() -> None:
    belt = FromThread[int](1)
    refused: list[int] = []

    def make() -> None:
        number = 0
        while belt.put(number):
            number += 1
        refused.append(number)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, make)
            assert await belt.take() == 0
            belt.end()
    assert refused
    assert refused[0] <= 3


async def test_a_thread_works_on_what_is_given_in_order_and_the_giver_waits_for_room() -> None:
    belt = ToThread[int](2)
    may_go_on = threading.Semaphore(0)
    done: list[int] = []

    def work() -> None:
        for number in belt.items():
            may_go_on.acquire()
            done.append(number)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, work)
            await belt.give(0)
            await belt.give(1)
            with trio.move_on_after(0.05) as waited:
                await belt.give(2)
            assert waited.cancelled_caught, "there was no room"
            may_go_on.release(1000)
            for number in range(2, 500):
                await belt.give(number)
            belt.end()
    assert done == list(range(500))


async def test_what_a_thread_raises_ends_who_gives() -> None:
    belt = ToThread[int](1)

    def work() -> None:
        for number in belt.items():
            raise ValueError(str(number))

    async def give() -> None:
        while True:
            await belt.give(7)

    with trio.fail_after(PATIENCE), pytest.RaisesGroup(ValueError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, work)
            nursery.start_soon(give)
