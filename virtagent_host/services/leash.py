"""What keeps a service from outliving va-host, and from taking the end of va-host for the end of its input.

A pipe ends when its last writer is gone, however that came: to a service that stores a backup, a va-host
that was killed looks like one that has sent all. So a second process holds the pipe, too. It is told when
the input has really ended; if it loses va-host before that, it kills the service first. It is a few words
of shell, none of them a guest's.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

import trio

#: Its stdin is the pipe on which va-host speaks; $1 is the service's process group.
_GUARD = 'IFS= read -r word && [ "$word" = ended ] || kill -s KILL -- "-$1"'
#: Seconds for it to end.
_PATIENCE = 5.0


class Leash:
    """Made by `start`, ended by `let_go`."""

    def __init__(self, process: trio.Process, speaking: int) -> None:
        self._process = process
        self._speaking = speaking

    @classmethod
    async def start(cls, group: int, held: int) -> Leash:
        """Start it.

        Args:
            group: the process group to kill.
            held: the end of a pipe that it holds until it is let go; remains the caller's, too.

        Raises:
            OSError: it cannot be started.
        """
        listening, speaking = os.pipe()
        try:
            process = await trio.lowlevel.open_process(
                ["/bin/sh", "-c", _GUARD, "va-host-leash", str(group)],
                stdin=listening,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(held,),
                cwd="/",
                env={},
                start_new_session=True,
            )
        except BaseException:
            os.close(speaking)
            raise
        finally:
            os.close(listening)
        return cls(process, speaking)

    def let_go(self) -> None:
        """Tell it that all is well: it ends, and with it its hold on the pipe. This may be repeated."""
        if self._speaking >= 0:
            with suppress(OSError):  # somebody has killed it
                os.write(self._speaking, b"ended\n")
            os.close(self._speaking)
            self._speaking = -1

    async def wait(self) -> None:
        """Wait until it has ended."""
        with trio.move_on_after(_PATIENCE):
            await self._process.wait()
