"""virtio-serial: a port /dev/virtio-ports/NAME, as that character device really behaves.

The rules:

1. An empty read is not an end of file: it says that the host has not opened its side *now*.
   EAGAIN on a read says that it has. The stream waits in both cases; it ends only with the device.
2. While the host is there, the port can be waited for as any other file, if only for reading: it may
   vanish while a task waits for room to write.
3. While it is absent, a level-triggered poll cannot wait for it: POLLIN and POLLHUP are set all the
   time, so `trio.lowlevel.FdStream` would report a false end of file on read and burn a whole CPU on
   write (EAGAIN, wait, woken at once by POLLHUP, EAGAIN, …). Edges can: an own epoll with the port
   registered for EPOLLOUT *and* EPOLLET, itself readable, is what trio waits for. (EPOLLIN alone never
   wakes on connect.)
4. Each direction has an epoll of its own. The reader task and the writer task wait at the same
   time; on one shared epoll the first to wake would consume the edge that the other waits for.
5. No edge is lost: an epoll remembers an edge until it is asked, so one that comes between the
   failed attempt and the wait makes that wait return at once. A stale one costs one more attempt.
6. A host that closes and reconnects at once is not seen at all. Only the link's greeting finds it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence

import trio

from virtagent_protocol.channel import Buffer, Turns, behind, read_on, write_some
from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.exclusive import Exclusive

from .base import Report, Transport, open_error

#: Default number of bytes to return at most.
RECEIVE_SIZE = 64 * 1024
#: A read(2) returns what one of the port's buffers holds, which is a page, and a readv(2) goes on to the next
#: buffer with its next page, if it has filled that. A turn of the event loop for each page would be most of
#: what it costs to receive a file.
BUFFER_SIZE = 4096
#: Bytes up to which nothing is won by that: most messages are shorter than a page.
UNCUT = 2 * BUFFER_SIZE
#: Bytes asked for by one readv(2).
READ_SIZE = 16 * BUFFER_SIZE
#: Seconds to wait for more of what comes page by page, and how often (`channel.read_on`).
NAP, NAPS = 0.001, 2
#: A write(2) takes no more than this; a writev(2) goes on with its next part, if it has taken one whole.
WRITE_SIZE = 32 * 1024


class VirtioPort(Transport):
    """A virtio-serial port. It has one opener at a time: a second open fails with EBUSY."""

    async def open(self, report: Report) -> VirtioPortStream:
        await trio.lowlevel.checkpoint()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise self._explained(error) from error

        def on_host(connected: bool) -> None:
            state = "the host is connected" if connected else "waiting for the host"
            report(connected, f"{state} on {self.path}")

        on_host(connected=False)
        return VirtioPortStream(fd, on_host)

    def _explained(self, error: OSError) -> VirtagentError:
        return open_error(
            self.path,
            error,
            absent="add the port on the host (`va-host attach` does), or name another one with -p",
            busy="another process holds the port, stop it (is va-guest.service running already?)",
        )


class VirtioPortStream(trio.abc.Stream):
    """A byte stream on an open virtio-serial port. It never reports an end of file.

    Args:
        fd: of the port, opened for reading and writing with O_NONBLOCK. The stream owns it.
        on_host: called with True when the host is seen to be there, with False when it is seen to have gone
            and all that it left has been received. At first it counts as gone. A hint, see rule 6.
    """

    def __init__(self, fd: int, on_host: Callable[[bool], None] = lambda connected: None) -> None:
        self._fd = fd
        self._on_host = on_host
        self._host_connected = False
        self._connected = _Edges(fd)
        self._writable = _Edges(fd)
        self._receiving = Exclusive("another task is receiving on this port")
        self._turns = Turns()
        self._sending = Exclusive("another task is sending on this port")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return at least one byte, waiting for the host as long as it takes.

        Raises:
            trio.BrokenResourceError: the device is gone or failed.
            trio.ClosedResourceError: the stream was closed, perhaps by another task meanwhile.
            trio.BusyResourceError: another task is receiving.
        """
        size = RECEIVE_SIZE if max_bytes is None else max_bytes
        if size < 1:
            raise ValueError("max_bytes must be at least 1")
        buffer = bytearray(size)
        await trio.lowlevel.checkpoint()
        count = await self.read_into(memoryview(buffer))
        return bytes(memoryview(buffer)[:count])

    async def read_into(self, buffer: memoryview) -> int:
        """As `receive_some`, into a buffer of at least one byte; return how many bytes that was.

        What is there is read at once: other tasks have their turn after a few reads.
        """
        with self._receiving:
            if self._turns.due:
                await self._turns.give()
            self._check_open()
            while not (count := self._read(buffer)):
                self._turns.given()
                if self._host_connected:
                    await trio.lowlevel.wait_readable(self._fd)
                else:
                    await self._connected.wait()
            self._turns.read(count)
            return count + read_on(buffer[count:], self._read, NAP, NAPS)

    def _read(self, buffer: memoryview) -> int:
        """Read what there is, at most as much as fits; return how many bytes that was."""
        count = 0
        while count < len(buffer):
            wanted = buffer[count : count + READ_SIZE]
            pages = [wanted]
            if len(wanted) > UNCUT:
                pages = [wanted[at : at + BUFFER_SIZE] for at in range(0, len(wanted), BUFFER_SIZE)]
            try:
                got = os.readv(self._fd, pages)
            except BlockingIOError:
                self._host_is(connected=True)
                break
            except OSError as error:
                if count:
                    break  # the next read tells it again
                raise self._broken(error) from error
            if not got:
                # That the host has gone is told when all that it left has been taken.
                if not count:
                    self._host_is(connected=False)
                break
            count += got
            # Most likely that was all, and asking costs a system call.
            if got < len(wanted):
                break
        return count

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `write`, of one buffer."""
        await self.write([data])

    async def write(self, parts: Sequence[Buffer]) -> None:
        """Write all of several buffers, waiting while the port is full or the host is absent.

        What is written may still vanish: the device drops what a host has not read when it closes.

        Raises:
            trio.BrokenResourceError: the device is gone or failed.
            trio.ClosedResourceError: the stream was closed, perhaps by another task meanwhile.
            trio.BusyResourceError: another task is sending.
        """
        with self._sending:
            self._check_open()
            await trio.lowlevel.checkpoint_if_cancelled()
            while parts := behind(parts, 0):
                try:
                    parts = behind(parts, _write(self._fd, parts))
                except BlockingIOError:
                    await self._writable.wait()
                except OSError as error:
                    raise self._broken(error) from error
            # Behind what was written, not before: somebody waits for it.
            await trio.lowlevel.cancel_shielded_checkpoint()

    def write_now(self, parts: Sequence[Buffer]) -> int:
        """Write what the port takes at once, and return how many bytes that was; 0 on any error, and while
        another task is sending."""
        try:
            return 0 if self._sending.taken else _write(self._fd, parts)
        except OSError:
            return 0  # it is full, or gone: `write` will tell

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: the device cannot tell without being written to, and the contract allows it."""
        with self._sending:
            self._check_open()
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            trio.lowlevel.notify_closing(fd)
            self._connected.close()
            self._writable.close()
            os.close(fd)
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._fd < 0:
            raise trio.ClosedResourceError("the port was closed")

    def _broken(self, error: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
        # After aclose() by another task the read or write fails with EBADF, and it is not the device's fault.
        if self._fd < 0:
            return trio.ClosedResourceError("the port was closed")
        return trio.BrokenResourceError(f"the port failed: {error.strerror}")

    def _host_is(self, *, connected: bool) -> None:
        if connected != self._host_connected:
            self._host_connected = connected
            self._on_host(connected)


def _write(fd: int, parts: Sequence[Buffer]) -> int:
    if len(parts) > 1 or len(parts[0]) > WRITE_SIZE:
        views = [memoryview(part) for part in parts]
        parts = [view[at : at + WRITE_SIZE] for view in views for at in range(0, len(view), WRITE_SIZE)]
    return write_some(fd, parts)


class _Edges:
    """What one direction waits for, when it is not for bytes: that the port becomes writable, which it also
    does when the host connects."""

    def __init__(self, fd: int) -> None:
        self._epoll = select.epoll()
        self._epoll.register(fd, select.EPOLLOUT | select.EPOLLET)

    async def wait(self) -> None:
        """Return after something about the port has changed since the last wait."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        # Another task may have closed the stream since this one was woken.
        if not self._epoll.closed:
            self._epoll.poll(0)

    def close(self) -> None:
        # Wakes the task in wait(), if there is one, with ClosedResourceError.
        trio.lowlevel.notify_closing(self._epoll.fileno())
        self._epoll.close()
