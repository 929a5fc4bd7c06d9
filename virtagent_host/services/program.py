"""A service that is an executable: its process on the streams of a call.

The rules:

1. No shell, no option that the guest could give: argv is the file and the arguments that a rule has let pass.
   The environment is made here, and has nothing of va-host's own; its values are names and numbers.
2. It is the leader of a session of its own, and what it leaves behind in its process group ends with it.
3. Whoever calls may be gone before it has ended: cancelled, or the session lost. Then its group gets SIGTERM,
   and `GRACE` later SIGKILL. Its input is *not* ended before that: half a backup must not look like a whole.
4. It reads what the guest sends as fast as it likes to, and so does the guest with what it writes: nothing is
   kept in between.
"""

from __future__ import annotations

import logging
import os
import pwd
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from virtagent_protocol.errors import FaultCode
from virtagent_protocol.outcome import until_ended
from virtagent_protocol.stream import CANCELLED, LinkStream
from virtagent_protocol.values import Struct

from .catalog import Program, Unusable
from .leash import Leash
from .request import ServiceCall
from .rules import Settings
from .written import Written, log_lines

log = logging.getLogger("virtagent.services")

#: Seconds between SIGTERM and SIGKILL.
GRACE = 5.0

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(vm: str, call: ServiceCall) -> dict[str, str]:
    """Return all variables that a service gets."""
    return {
        "PATH": PATH,
        "VA_VM": vm,
        "VA_SERVICE": call.service,
        "VA_CALLER_UID": str(call.caller.uid),
        "VA_CALLER_GID": str(call.caller.gid),
        "VA_CALLER_PID": str(call.caller.pid),
        "VA_CALLER_USER": call.caller.user,
    }


class Running:
    """A process that runs for a call; made by `start`.

    Args:
        what: what the log calls it.
        process: it.
        stdin: what is written there it reads.
        leash: on which it is.
        settings: of the rule that has let the call pass.
    """

    def __init__(
        self, what: str, process: trio.Process, stdin: int, leash: Leash, settings: Settings
    ) -> None:
        self._what = what
        self._process = process
        self._stdin = trio.lowlevel.FdStream(stdin)
        self._leash = leash
        self._settings = settings
        self._end: Struct = {}
        self._ended = trio.Event()
        self._reaped = False
        #: Set when it is to end though it has not; and what the guest is told then, if that is not all.
        self._stop = trio.Event()
        self._fault: tuple[int, str] | None = None
        self._deadline = False
        self._written = Written()

    @classmethod
    async def start(
        cls, what: str, program: Program, vm: str, call: ServiceCall, settings: Settings
    ) -> Running:
        """Start it.

        Raises:
            Fault: INVALID_PARAMS: an argument is none that a program can have.
            Unusable: it cannot be started.
        """
        words, account = call.words(), _account(settings.run_as)
        reading, writing = os.pipe()
        try:
            process = await trio.lowlevel.open_process(
                [program.path, *words],
                stdin=reading,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=environment(vm, call),
                start_new_session=True,
                # What it makes is a guest's, and nobody else's here.
                umask=0o077,
                **account,
            )
            async with _killed_on_error(process):
                leash = await Leash.start(process.pid, writing)
        except BaseException as error:
            os.close(writing)
            if isinstance(error, (OSError, subprocess.SubprocessError)):
                raise Unusable(f"{program.path} cannot be started: {error}") from error
            raise
        finally:
            os.close(reading)
        return cls(what, process, writing, leash, settings)

    async def run(self, io: LinkStream) -> Struct | tuple[int, str]:
        """Pass on input and output until it has ended, and return its status document.

        Args:
            io: has ended then, or is broken.
        """
        process = self._process
        stdout, stderr = process.stdout, process.stderr
        assert isinstance(stdout, trio.lowlevel.FdStream)
        assert isinstance(stderr, trio.lowlevel.FdStream)
        whole = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._await_end)
                nursery.start_soon(self._keep_deadline)
                nursery.start_soon(self._watch, io)
                nursery.start_soon(self._feed, io)
                async with trio.open_nursery() as reading:
                    nursery.start_soon(self._end_by_force, reading.cancel_scope)
                    reading.start_soon(log_lines, self._what, self._written, stderr)
                    whole = await self._send(stdout, io)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            # Its group, while its number is its own; only then its pipes (rule 3).
            self._signal(signal.SIGKILL)
            with trio.CancelScope(shield=True), trio.move_on_after(GRACE):
                if not self._end:
                    await self._await_end()
                self._reaped = True
                await process.wait()
            with trio.CancelScope(shield=True):
                self._leash.let_go()
                for pipe in (self._stdin, stdout, stderr):
                    await pipe.aclose()
                await self._leash.wait()
            if not whole:
                io.reset(CANCELLED)
        await io.aclose()
        if self._fault is not None:
            return self._fault
        return {**self._end, **({"deadline": True} if self._deadline else {})}

    # --- How it ends ---------------------------------------------------------------------------------

    async def _await_end(self) -> None:
        self._end = await until_ended(self._process.pid)
        self._written.process_ended()
        self._ended.set()

    async def _keep_deadline(self) -> None:
        await trio.sleep(self._settings.run_time)
        self._deadline = True
        log.warning("%s: it has reached its run-time of %g s", self._what, self._settings.run_time)
        self._stop.set()

    async def _watch(self, io: LinkStream) -> None:
        """Let it end when nobody is there any more who called."""

        async def closed() -> None:
            await io.wait_unwanted()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed)
            await io.broken.wait()
            nursery.cancel_scope.cancel()
        if not self._ended.is_set():
            log.info("%s: whoever called is gone", self._what)
        self._stop.set()

    async def _end_by_force(self, reading: trio.CancelScope) -> None:
        await self._stop.wait()
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # one that is stopped would not notice
        with trio.move_on_after(GRACE):
            await self._ended.wait()
        self._signal(signal.SIGKILL)
        # Who did not read its output until now has had the time for it.
        reading.cancel()

    def _refuse(self, code: FaultCode, message: str) -> None:
        self._fault = (code, message)
        log.warning("%s: %s", self._what, message)
        self._stop.set()

    def _signal(self, number: int) -> None:
        """Send a signal to its group, while its leader has not been reaped."""
        # Not `Process.returncode`: to ask for that reaps it.
        if not self._reaped:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return
            except PermissionError:
                log.error("%s: va-host may not end it: run-as needs the capability CAP_KILL", self._what)

    # --- What it reads and writes --------------------------------------------------------------------

    async def _feed(self, io: LinkStream) -> None:
        count, most = 0, self._settings.input_max
        try:
            async for data in io:
                count += len(data)
                if most is not None and count > most:
                    self._refuse(FaultCode.TOO_LARGE, f"it takes {most} bytes of input, and there are more")
                    return
                await self._stdin.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it reads no more; or the call broke, which is no end of its input
        if not io.unwanted:
            self._leash.let_go()
            await self._stdin.aclose()

    async def _send(self, stdout: trio.lowlevel.FdStream, io: LinkStream) -> bool:
        """Return whether all that it wrote was sent."""
        count, most = 0, self._settings.output_max
        try:
            while data := await self._written.read(stdout):
                count += len(data)
                if most is not None and count > most:
                    self._refuse(FaultCode.TOO_LARGE, f"it may write {most} bytes, and has written more")
                    return False
                await io.send_all(data)
            await io.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True


@asynccontextmanager
async def _killed_on_error(process: trio.Process) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True), trio.move_on_after(GRACE):
            await process.wait()
        raise


def _account(run_as: str | None) -> dict[str, Any]:
    """Return the arguments of Popen for a user.

    Raises:
        Unusable: there is none of that name, or va-host cannot act for it.
    """
    if run_as is None:
        return {}
    try:
        entry = pwd.getpwnam(run_as)
    except KeyError:
        raise Unusable(f"run-as: this host has no user '{run_as}'") from None
    if os.geteuid() == entry.pw_uid:
        return {}
    if os.geteuid() != 0:
        raise Unusable(f"run-as = '{run_as}' needs a va-host that runs as root")
    groups = os.getgrouplist(run_as, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
