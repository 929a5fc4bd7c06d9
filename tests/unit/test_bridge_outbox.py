"""What waits for a client of the bridge: events of a guest spare it, others do not."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from virtagent_host.bridge.outbox import EVENT_BYTES_MAX, EVENTS_MAX, SPARING, Outbox
from virtagent_protocol.channel import Buffer


async def sent_by(outbox: Outbox) -> list[bytes]:
    sent: list[bytes] = []

    async def send(message: bytes) -> None:
        sent.append(message)

    outbox.close()
    await outbox.send_all(send)
    return sent


async def test_of_events_that_are_left_out_the_last_one_is_sent() -> None:
    outbox = Outbox()
    for n in range(3 * EVENTS_MAX):
        outbox.put_sparing(b"%d" % n)
    sent = await sent_by(outbox)
    assert sent[:-1] == [b"%d" % n for n in range(EVENTS_MAX // SPARING)]
    assert sent[-1] == b"%d" % (3 * EVENTS_MAX - 1)


async def test_large_ones_are_left_out_by_their_size() -> None:
    outbox = Outbox()
    for n in range(100):
        outbox.put_sparing(b"%d" % n + b" " * 20000)
    sent = await sent_by(outbox)
    assert sum(map(len, sent)) < EVENT_BYTES_MAX // SPARING + 30000
    assert sent[-1].startswith(b"99 ")


async def test_a_guest_that_floods_leaves_room_for_other_events() -> None:
    outbox = Outbox()
    for _ in range(EVENTS_MAX):
        outbox.put_sparing(b"flood")
    assert outbox.put_event(b"other")
    assert (await sent_by(outbox))[-2:] == [b"other", b"flood"]


async def test_none_is_left_out_while_the_client_reads() -> None:
    outbox = Outbox()
    sent: list[bytes] = []

    async def send(message: bytes) -> None:
        sent.append(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.send_all, send)
        for n in range(2000):
            outbox.put_sparing(b"%d" % n)
            await trio.testing.wait_all_tasks_blocked()
        outbox.close()
    assert sent == [b"%d" % n for n in range(2000)]


class Client:
    """A client that takes so many bytes at once, and the rest when it is asked to."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.got = b""

    def write_now(self, parts: Sequence[Buffer]) -> int:
        data = b"".join(parts)[: self.room]
        self.got += data
        self.room -= len(data)
        return len(data)

    async def send(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.got += message


async def test_what_can_be_written_at_once_is_and_the_rest_follows_in_order() -> None:
    client = Client(room=10)
    outbox = Outbox(client.write_now)
    outbox.put_reply(b"first,")
    assert client.got == b"first,"
    outbox.put_event(b"second,")
    assert client.got == b"first,seco"
    client.room = 100
    outbox.put_reply(b"third")
    assert client.got == b"first,seco", "it overtook"
    outbox.close()
    await outbox.send_all(client.send)
    assert client.got == b"first,second,third"


async def test_what_a_client_takes_at_once_counts_as_nothing_that_waits() -> None:
    client = Client(room=10**9)
    outbox = Outbox(client.write_now)
    for _ in range(2 * EVENTS_MAX):
        assert outbox.put_event(b"x" * 1000)
        outbox.put_reply(b"y")
    with trio.fail_after(1):
        await outbox.room_for_replies()
        await outbox.events_sent()
    assert len(client.got) == 2 * EVENTS_MAX * 1001
