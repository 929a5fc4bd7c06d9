"""The clipboard of an X server, for trio."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import trio

from ...errors import CallTimeout, NotReady, NotThere, VirtagentError
from ..backend import Backend
from ..contents import SIZE_MAX, Allowance, Blob, Contents
from ..mime import PATTERNS, TEXT_NAMES, wanted

try:
    from .incoming import WHOLE_TIME
    from .screen import Screen
    from .thread import ScreenThread
except ModuleNotFoundError as error:
    raise NotThere(
        f"the clipboard of X11 needs python-xlib, which is not installed ({error}): "
        "apt install python3-xlib, or pip install 'virtagent[clipboard]'"
    ) from None

T = TypeVar("T")

#: Seconds for a server to be connected to, and to answer what it answers by itself.
SERVER_TIME = 10.0
#: How often contents are read anew because the clipboard changed meanwhile.
ATTEMPTS = 4


@asynccontextmanager
async def open_x11(name: str) -> AsyncIterator[X11Clipboard]:
    """Connect to a display, such as ``:0``. Raises as `open_clipboard`."""
    clipboard = X11Clipboard(name)
    try:
        await clipboard.opened()
        yield clipboard
    finally:
        clipboard.close()


class X11Clipboard(Backend):
    """The selection CLIPBOARD. Made by `open_x11`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._token = trio.lowlevel.current_trio_token()
        self._ready = trio.Event()
        self._refusal: VirtagentError | None = None
        self._awaited: set[trio.Event] = set()
        #: One conversion at a time.
        self._lock = trio.Lock()
        self._thread = ScreenThread(
            name, self._later(self._on_open), self._later(self._note_change), self._later(self._lose)
        )

    def _later(self, function: Callable[..., None]) -> Callable[..., None]:
        """Return what another thread may call to have *function* called here."""

        def post(*args: object) -> None:
            with suppress(trio.RunFinishedError):  # nobody is left to hear it
                self._token.run_sync_soon(function, *args)

        return post

    async def opened(self) -> None:
        """Return when the connection stands."""
        with trio.move_on_after(SERVER_TIME):
            await self._ready.wait()
            if self._refusal is not None:
                raise self._refusal
            return
        raise self._stopped()

    def close(self) -> None:
        """End the connection: what we have set is gone with it."""
        self._thread.stop()

    def _on_open(self, refusal: VirtagentError | None) -> None:
        self._refusal = refusal
        self._ready.set()

    async def offered(self) -> list[str]:
        own = await self._ask(lambda screen: screen.own)
        if own is not None:
            return list(own)
        async with self._lock:
            return await self._targets()

    async def read(self, patterns: Sequence[str] = PATTERNS, limit: int = SIZE_MAX) -> Contents:
        async with self._lock:
            for _ in range(ATTEMPTS):
                own = await self._ask(lambda screen: screen.own)
                if own is not None:
                    return own
                changes = self.changes
                contents = await self._read(patterns, Allowance(limit))
                if self.changes == changes:
                    return contents
        raise NotReady(f"the clipboard of display {self._name} kept changing while it was read")

    async def write(self, contents: Contents) -> None:
        await self._ask(lambda screen: screen.own_clipboard(contents))

    async def _read(self, patterns: Sequence[str], allowance: Allowance) -> Contents:
        blobs = {}
        for plain, name in wanted(await self._targets(), patterns).items():
            blob = await self._convert(name, allowance)
            # An owner may offer what it then does not give.
            if isinstance(blob, Blob):
                blobs[plain] = _as_utf8(blob) if name in TEXT_NAMES else blob
        return Contents(blobs)

    async def _targets(self) -> list[str]:
        names = await self._convert("TARGETS", Allowance())
        return names if isinstance(names, list) else []

    async def _convert(self, target: str, allowance: Allowance) -> Blob | list[str] | None:
        """Return what the owner has; None: nothing of that type."""
        result: list[Blob | list[str] | VirtagentError | None] = []
        done = trio.Event()

        def finish(value: Blob | list[str] | VirtagentError | None) -> None:
            result.append(value)
            done.set()

        self._check()
        self._thread.post(lambda screen: screen.convert(target, allowance, self._later(finish)))
        try:
            # The thread has deadlines for the owner, and none for the server.
            with trio.move_on_after(WHOLE_TIME + SERVER_TIME):
                await self._until(done)
        except BaseException:
            self._thread.post(lambda screen: screen.forget())
            raise
        if not result:
            self._check()
            raise self._stopped()
        [value] = result
        if isinstance(value, VirtagentError):
            raise value
        return value

    async def _ask(self, question: Callable[[Screen], T]) -> T:
        """Return what *question* returns, or raise what it raises, called in the thread."""
        answers: list[T] = []
        errors: list[VirtagentError] = []
        done = trio.Event()

        def ask(screen: Screen) -> None:
            try:
                answers.append(question(screen))
            except VirtagentError as error:
                errors.append(error)
            self._later(done.set)()

        self._check()
        self._thread.post(ask)
        with trio.move_on_after(SERVER_TIME):
            await self._until(done)
        if errors:
            raise errors[0]
        if not answers:
            self._check()
            raise self._stopped()
        return answers[0]

    async def _until(self, done: trio.Event) -> None:
        """Wait for an event that the thread sets; raise if the connection is lost first."""
        self._awaited.add(done)
        try:
            await done.wait()
        finally:
            self._awaited.discard(done)

    def _lose(self, error: VirtagentError) -> None:
        super()._lose(error)
        for done in self._awaited:
            done.set()

    def _stopped(self) -> CallTimeout:
        return CallTimeout(f"the X server of display {self._name} does not answer within {SERVER_TIME:g} s")

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost


def _as_utf8(blob: Blob) -> Blob:
    """Return text as UTF-8 without a NUL at its end, which some programs add: rule 2 of `mime`."""
    size = blob.size
    if size and blob.read(size - 1) == b"\0":
        blob = Blob.of(blob.bytes().rstrip(b"\0"))
    return blob if _is_utf8(blob) else Blob.of(blob.bytes().decode("latin-1").encode())


def _is_utf8(blob: Blob) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in blob.pieces():
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
