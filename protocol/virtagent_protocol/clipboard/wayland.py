"""The clipboard of a Wayland compositor, by wl-copy and wl-paste.

The rules:

1. They see the clipboard without a window by a data-control protocol. A compositor without one is told as
   such; wl-paste's way around it, a window that takes the focus, is not for a program that runs unseen.
2. wl-copy offers one type (and text under all its names). Of contents of several types it gets the one that
   most programs can paste: text, else an image, else the first.
3. `wl-paste --watch` tells of each change, and of its end when the compositor ends.
4. A program that ends in the middle of sending looks as if it had sent all. So what is offered is asked for
   again afterwards: if that has changed, what came counts for nothing.
5. The programs run in process groups of their own, which are killed with all that is in them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from ..errors import CallTimeout, LinkBroken, NotReady
from ..nursery import plain_nursery
from .backend import Backend, Unusable, no_answer
from .contents import SIZE_MAX, Allowance, Blob, Contents
from .mime import PATTERNS, TEXT, wanted
from .wayland_globals import wayland_globals

PROTOCOLS = ("zwlr_data_control_manager_v1", "ext_data_control_manager_v1")
PROGRAMS = ("wl-copy", "wl-paste")

#: Seconds without a byte after which a program that holds the clipboard is given up; and for all of its
#: bytes.
PATIENCE, WHOLE_TIME = 5.0, 60.0
#: Seconds for what the compositor answers by itself, and for wl-copy to take in what it shall offer.
ANSWER_TIME = 15.0
#: How often contents are read anew because the clipboard changed meanwhile.
ATTEMPTS = 4
#: Bytes of the list of types, and of a program's last words.
_LIST_MAX, _WORDS_MAX = 64 * 1024, 500
_PIECE = 256 * 1024
#: What wl-paste says of an empty clipboard, in its versions.
_NOTHING = ("No selection", "Nothing is copied")


@asynccontextmanager
async def open_wayland(environ: Mapping[str, str] = os.environ) -> AsyncIterator[WaylandClipboard]:
    """Connect to the compositor of WAYLAND_DISPLAY. Raises as `open_clipboard`."""
    path = Path(environ.get("XDG_RUNTIME_DIR", "/nowhere"), environ["WAYLAND_DISPLAY"])
    try:
        offered = await trio.to_thread.run_sync(wayland_globals, path, abandon_on_cancel=True)
    except OSError as error:
        raise Unusable(f"no Wayland compositor can be reached at {path}: {error.strerror or error}") from None
    if not offered.intersection(PROTOCOLS):
        raise Unusable(
            f"the compositor at {path} does not let programs without a window use the clipboard: "
            f"it has neither {' nor '.join(PROTOCOLS)}"
        )
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise Unusable(
            f"the clipboard of Wayland needs {' and '.join(missing)}, not installed: apt install wl-clipboard"
        )
    clipboard = WaylandClipboard({**os.environ, **environ})
    async with plain_nursery() as nursery:
        await nursery.start(clipboard.watch)
        yield clipboard
        nursery.cancel_scope.cancel()


class WaylandClipboard(Backend):
    """Made by `open_wayland`.

    Args:
        environ: of the programs.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__()
        # Their words are read.
        self._environ = {**environ, "LC_ALL": "C.UTF-8"}
        self._lock = trio.Lock()
        #: What we have set, the type of which it is offered, and the names that are offered since.
        self._own: tuple[Contents, str, list[str]] | None = None

    async def watch(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Note changes until cancelled, or until the compositor ends."""
        # What is printed for each change is one byte; the contents, which the printer could read, it does
        # not.
        async with self._running("wl-paste", "--watch", "echo") as (process, words):
            task_status.started()
            assert process.stdout is not None
            async for data in process.stdout:
                for _ in range(data.count(b"\n")):
                    self._note_change()
            await process.wait()
            self._lose(LinkBroken(f"the Wayland compositor has ended: {words()}"))

    async def offered(self) -> list[str]:
        async with self._lock:
            return await self._names()

    async def read(self, patterns: Sequence[str] = PATTERNS, limit: int = SIZE_MAX) -> Contents:
        async with self._lock:
            for _ in range(ATTEMPTS):
                names, changes = await self._names(), self.changes
                contents = await self._read(names, patterns, Allowance(limit))
                if names == await self._names() and changes == self.changes:
                    return self._as_set(names, contents)
        raise NotReady("the clipboard kept changing while it was read")

    async def write(self, contents: Contents) -> None:
        name = best(contents)
        async with self._lock:
            source = contents[name].open()
            try:
                async with self._running("wl-copy", "--type", name, stdin=source, stays=True) as (
                    process,
                    words,
                ):
                    with trio.move_on_after(ANSWER_TIME) as scope:
                        status = await process.wait()
            finally:
                os.close(source)
            if scope.cancelled_caught:
                raise CallTimeout(f"wl-copy has not set the clipboard within {ANSWER_TIME:g} s")
            if status:
                raise self._failure("wl-copy", words())
            self._own = (contents, name, await self._names())

    def _as_set(self, names: list[str], contents: Contents) -> Contents:
        """Return what we have set if that is what was read: wl-copy has offered only one of its types."""
        if self._own is not None:
            own, name, own_names = self._own
            blob = contents.get(name)
            if names == own_names and blob is not None and blob.sha256 == own[name].sha256:
                return own
        return contents

    async def _names(self) -> list[str]:
        async with self._running("wl-paste", "--list-types") as (process, words):
            with trio.move_on_after(ANSWER_TIME) as scope:
                data = await _read_some(process, _LIST_MAX)
                status = await process.wait()
        if scope.cancelled_caught:
            raise CallTimeout(f"the Wayland compositor does not answer within {ANSWER_TIME:g} s")
        if status and not words().startswith(_NOTHING):
            raise self._failure("wl-paste", words())
        return [] if status else data.decode(errors="replace").split("\n")[:-1]

    async def _read(self, names: list[str], patterns: Sequence[str], allowance: Allowance) -> Contents:
        blobs = {}
        for plain, name in wanted(names, patterns).items():
            async with self._running("wl-paste", "--no-newline", "--type", name) as (process, _):
                blob = await self._receive(process, plain, allowance)
                # One that has nothing of what it offers is passed over.
                if await process.wait() == 0:
                    blobs[plain] = blob
        return Contents(blobs)

    async def _receive(self, process: trio.Process, name: str, allowance: Allowance) -> Blob:
        blob = Blob()
        assert process.stdout is not None
        with trio.move_on_after(WHOLE_TIME):
            while True:
                with trio.move_on_after(PATIENCE) as scope:
                    data = await process.stdout.receive_some(_PIECE)
                if scope.cancelled_caught:
                    raise no_answer(f"its {name}", PATIENCE)
                if not data:
                    return blob
                allowance.take(len(data))
                blob.append(data)
        raise no_answer(f"all of its {name}", WHOLE_TIME)

    def _failure(self, program: str, words: str) -> NotReady:
        return NotReady(f"{program} failed: {words or 'it does not say why'}")

    @asynccontextmanager
    async def _running(
        self, *command: str, stdin: int = subprocess.DEVNULL, stays: bool = False
    ) -> AsyncIterator[tuple[trio.Process, _Words]]:
        """Run a program until the end of the block, or let what it leaves behind stay."""
        words = _Words()
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=stdin,
            stdout=subprocess.DEVNULL if stays else subprocess.PIPE,
            stderr=words.fd,
            env=self._environ,
            start_new_session=True,
        )
        try:
            yield process, words
        finally:
            if not stays or process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
                if process.stdout is not None:
                    await process.stdout.aclose()
            words.close()


class _Words:
    """What a program says to its stderr, kept in memory: a pipe would have to be read until all are gone."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("virtagent-words", os.MFD_CLOEXEC)
        self._text = ""

    def __call__(self) -> str:
        """Return it, as a line."""
        if self.fd >= 0:
            self._text = " ".join(os.pread(self.fd, _WORDS_MAX, 0).decode(errors="replace").split())
        return self._text

    def close(self) -> None:
        """Remember it, and close the file."""
        self()
        os.close(self.fd)
        self.fd = -1


async def _read_some(process: trio.Process, limit: int) -> bytes:
    data = b""
    assert process.stdout is not None
    async for piece in process.stdout:
        data += piece
        if len(data) > limit:
            break
    return data[:limit]


def best(contents: Contents) -> str:
    """Return the type under which contents are of most use, if there can be only one."""
    images = [name for name in contents if name.startswith("image/")]
    return TEXT if TEXT in contents else next(iter([*images, *contents]))
