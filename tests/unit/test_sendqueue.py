"""The order of what goes out: replies first, and nothing starves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from virtagent_protocol.sendqueue import TURNS, WAIT_MAX, Lane, SendQueue


def drain(queue: SendQueue[str]) -> list[str]:
    taken = []
    while (item := queue.pop()) is not None:
        taken.append(item)
    return taken


def test_replies_go_before_requests_and_requests_before_streams() -> None:
    queue: SendQueue[str] = SendQueue()
    for item, lane in (("s", Lane.STREAM), ("q", Lane.REQUEST), ("r1", Lane.REPLY), ("r2", Lane.REPLY)):
        queue.put(item, lane)
    assert drain(queue) == ["r1", "r2", "q", "s"]


def test_a_lane_that_was_passed_over_has_its_turn() -> None:
    queue: SendQueue[str] = SendQueue()
    queue.put("s", Lane.STREAM)
    for i in range(2 * TURNS):
        queue.put(f"r{i}", Lane.REPLY)
    assert drain(queue).index("s") == TURNS


def test_what_was_discarded_is_not_sent() -> None:
    queue: SendQueue[str] = SendQueue()
    queue.put("a", Lane.REQUEST)
    queue.put("b", Lane.REQUEST)
    assert queue.discard("a")
    assert not queue.discard("a")
    assert len(queue) == 1
    assert drain(queue) == ["b"]


_puts = st.lists(st.tuples(st.sampled_from(list(Lane)), st.integers(0, 6)), max_size=60)


@settings(max_examples=500, deadline=None)
@given(_puts)
def test_no_head_of_a_lane_waits_for_more_than_the_stated_bound(puts: list[tuple[Lane, int]]) -> None:
    queue: SendQueue[tuple[Lane, int]] = SendQueue()
    waiting: dict[Lane, list[int]] = {lane: [] for lane in Lane}
    number = 0
    # How many others were taken since the item at the head of each lane came there.
    waited = dict.fromkeys(Lane, 0)

    def take() -> None:
        item = queue.pop()
        if item is None:
            assert not any(waiting.values())
            return
        lane = item[0]
        assert waiting[lane].pop(0) == item[1], "within a lane, first come first served"
        for other in Lane:
            if other is not lane and waiting[other]:
                waited[other] += 1
                assert waited[other] <= WAIT_MAX
        waited[lane] = 0

    for lane, takes in puts:
        # A flood in every lane above makes the bound tight.
        for flooded in [lane] + [upper for upper in Lane if upper < lane] * 3:
            number += 1
            queue.put((flooded, number), flooded)
            waiting[flooded].append(number)
        for _ in range(takes):
            take()
    while len(queue):
        take()
