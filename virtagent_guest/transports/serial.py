"""isa-serial: an emulated or real serial line, /dev/ttyS1 and the like.

A line tells nothing about its other end: no disconnect, no reconnect. That is the link's business
(its greeting and heartbeat); here the line only has to be transparent for all 256 byte values.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import termios

import trio

from virtagent_protocol.errors import LinkBroken, VirtagentError

from .base import Report, Transport, open_error


class SerialLine(Transport):
    """A serial line in raw mode, 8N1.

    Args:
        path: the terminal device.
        speed: in bits per second; QEMU's ports ignore it, real lines do not.
    """

    lossy = True

    def __init__(self, path: str, speed: int) -> None:
        super().__init__(path)
        self.speed = speed

    async def open(self, report: Report) -> trio.lowlevel.FdStream:
        await trio.lowlevel.checkpoint()
        # O_NOCTTY: a hangup of the agent's controlling terminal would end the agent.
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._explained(error) from error
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, fd)
            try:
                # Two agents on one line would take each other's bytes, and the kernel lets both open it.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                make_raw(fd, self.speed)
            except OSError as error:
                raise self._explained(error) from error
            except termios.error as error:
                if error.args[0] == errno.ENOTTY:
                    raise LinkBroken(f"{self.path} is not a serial line") from error
                raise LinkBroken(f"{self.path} cannot be set up: {error.args[-1]}") from error
            stream = trio.lowlevel.FdStream(fd)
            on_failure.pop_all()
        report(True, f"serving on {self.path}, {self.speed} bit/s")
        return stream

    def _explained(self, error: OSError) -> VirtagentError:
        return open_error(
            self.path,
            error,
            absent="add a serial port to the VM (QEMU's -serial), or name another one with -p",
            busy="another process holds the line, stop it (a getty, or another va-guest?)",
        )


def make_raw(fd: int, speed: int) -> None:
    """Make a terminal transparent: 8N1, no echo, no translation, no flow control; drop what it held.

    A terminal opens with ECHO and ICANON: until this ran, the peer's bytes come back to it.

    Raises:
        termios.error: not a terminal, or the driver refuses.
    """
    rate = getattr(termios, f"B{speed}")
    control_chars = termios.tcgetattr(fd)[6]
    control_chars[termios.VMIN] = 1
    control_chars[termios.VTIME] = 0
    # All other input flags off, and PARMRK above all: it would double every 0xFF.
    input_flags = termios.IGNBRK
    control_flags = termios.CS8 | termios.CREAD | termios.CLOCAL
    termios.tcsetattr(fd, termios.TCSANOW, [input_flags, 0, control_flags, 0, rate, rate, control_chars])
    termios.tcflush(fd, termios.TCIOFLUSH)
