"""What a link asks of its transport besides what every stream has."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from virtagent_protocol.channel import LARGE, NAPS, Buffer, behind, read_on, reading, write_now, writing

BIG = bytes(range(256)) * 8192
PATIENCE = 20


@pytest.mark.parametrize("count", range(11))
def test_behind_leaves_out_so_many_bytes(count: int) -> None:
    parts: list[Buffer] = [b"abc", bytearray(b"de"), b"", memoryview(b"fghij")]
    assert b"".join(behind(parts, count)) == b"abcdefghij"[count:]
    assert all(behind(parts, count)), "a part without a byte makes a writer wait for nothing"


def sockets() -> tuple[trio.SocketStream, trio.SocketStream]:
    near, far = map(trio.socket.from_stdlib_socket, socket.socketpair())
    return trio.SocketStream(near), trio.SocketStream(far)


@pytest.mark.parametrize("make", [sockets, trio.testing.memory_stream_pair])
async def test_all_parts_are_written_and_read_into_memory(make: object) -> None:
    assert callable(make)
    near, far = make()
    got = bytearray()

    async def read() -> None:
        read_into, buffer = reading(far), memoryview(bytearray(300_000))
        while count := await read_into(buffer):
            got.extend(buffer[:count])

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await writing(near)([b"head", memoryview(BIG), b"tail"])
            await near.aclose()
    assert got == b"head" + BIG + b"tail"
    await far.aclose()


async def test_what_is_written_at_once_is_what_the_socket_takes() -> None:
    near, far = sockets()
    write = write_now(near)
    assert write is not None
    taken = write([b"head", BIG])
    assert 4 < taken < len(BIG)
    while more := write([BIG]):
        taken += more
    assert write([b"x"]) == 0, "the socket is full"
    got = 0
    with trio.fail_after(PATIENCE):
        while got < taken:
            got += len(await far.receive_some())
    await far.aclose()
    assert write([b"x"]) == 0, "nobody is there any more"
    with pytest.raises(trio.BrokenResourceError):
        await writing(near)([b"x"])
    await near.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await writing(near)([b"x"])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([LARGE] * 4, 4 * LARGE),  # as long as much is awaited
        ([LARGE, 0, LARGE], LARGE),  # not when nothing comes
        ([1] * 100, NAPS),  # and not for ever
    ],
)
def test_reading_on_ends(sizes: list[int], expected: int) -> None:
    left = list(sizes)
    assert read_on(memoryview(bytearray(4 * LARGE)), lambda buffer: left.pop(0)) == expected


def test_a_small_buffer_is_not_waited_for() -> None:
    assert read_on(memoryview(bytearray(LARGE - 1)), lambda buffer: 1 // 0) == 0
