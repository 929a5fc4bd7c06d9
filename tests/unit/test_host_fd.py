"""What a client hands over: sockets, pipes, terminals, files; read and written with their flags untouched."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import tempfile
import tty
from collections.abc import Callable

import pytest
import trio

from virtagent_host.streams.fd import PIECE, HandedFd

BIG = bytes(range(256)) * 8192  # 2 MiB, more than any pipe or socket takes at once

Ends = tuple[int, int]


def pipe() -> Ends:
    return os.pipe()


def sockets() -> Ends:
    a, b = socket.socketpair()
    return a.detach(), b.detach()


def terminal() -> Ends:
    master, slave = pty.openpty()
    tty.setraw(slave)
    return slave, master


@pytest.mark.parametrize("make", [pipe, sockets, terminal])
async def test_all_that_is_written_is_read(make: Callable[[], Ends]) -> None:
    reading, writing = map(HandedFd, make())
    data = BIG if make is not terminal else BIG[:50_000]
    received = bytearray()

    async def write() -> None:
        await writing.write(data)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while len(received) < len(data):
                received += await reading.read()
    assert received == data
    writing.close()
    reading.close()


@pytest.mark.parametrize("make", [pipe, sockets, terminal])
async def test_the_flags_of_what_was_handed_over_stay_as_they_were(make: Callable[[], Ends]) -> None:
    fds = make()
    kept = [os.dup(fd) for fd in fds]
    reading, writing = map(HandedFd, fds)
    with trio.move_on_after(0.05):
        await reading.read()
    await writing.write(b"x")
    assert bytes(await reading.read()) == b"x"
    for fd in kept:
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        os.close(fd)
    reading.close()
    writing.close()


async def test_a_file_is_read_to_its_end_and_written() -> None:
    with tempfile.TemporaryFile() as file:
        sink = HandedFd(os.dup(file.fileno()))
        await sink.write(BIG)
        sink.close()
        file.seek(0)
        source = HandedFd(os.dup(file.fileno()))
        parts = []
        while part := await source.read():
            parts.append(part)
        assert b"".join(parts) == BIG
        source.close()


@pytest.mark.parametrize("make", [pipe, sockets])
async def test_the_end_of_what_is_read_is_the_empty_string(make: Callable[[], Ends]) -> None:
    reading, writing = make()
    os.close(writing)
    source = HandedFd(reading)
    assert bytes(await source.read()) == b""
    source.close()


@pytest.mark.parametrize("make", [pipe, sockets])
async def test_a_reader_that_is_gone_is_an_error(make: Callable[[], Ends]) -> None:
    reading, writing = make()
    os.close(reading)
    sink = HandedFd(writing)
    with pytest.raises(BrokenPipeError):
        await sink.write(b"x")
    sink.close()


async def test_a_writer_that_waits_can_be_cancelled_and_holds_up_nobody() -> None:
    reading, writing = pipe()
    sink = HandedFd(writing)
    with trio.move_on_after(0.05) as scope:
        await sink.write(BIG)
    assert scope.cancelled_caught
    sink.close()
    os.close(reading)


async def test_devices_that_are_always_ready_work() -> None:
    source, sink = HandedFd(os.open("/dev/zero", os.O_RDONLY)), HandedFd(os.open("/dev/null", os.O_WRONLY))
    assert bytes(await source.read()) == bytes(PIECE)
    await sink.write(BIG)
    source.close()
    sink.close()
