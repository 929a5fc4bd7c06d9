"""Contents on a stream: what `va.clipboard_read` sends and `va.clipboard_write` receives.

One line of JSON, then the bytes of each type in the order of the line, then the end of the stream::

    {"types": [{"type": "text/plain", "size": 5, "sha256": "…"}]}

or a line that says why there are none: ``{"error": {"kind": "not there", "message": "…"}}``.

The rules:

1. A size is told before the bytes, so whoever does not want so many says so before they come.
2. What comes is hostile until it was checked: the line's length, its shape, names, sizes, digests.
3. Nothing of it is used before all of it is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..errors import FailureKind, RemoteProtocolError, VirtagentError
from .contents import Blob, Contents, too_large
from .mime import TYPES_MAX, is_name

#: Bytes of a line: sixteen types, or an error.
LINE_MAX = 8 * 1024
#: Characters of an error's message.
MESSAGE_MAX = 1000

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Elsewhere(VirtagentError):
    """What the other end has said that went wrong there. Its words are untrusted.

    Args:
        kind: of the failure, in the other end's eyes.
        message: its words.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def header(contents: Contents) -> bytes:
    """Return the line in front of the bytes."""
    types = [{"type": name, "size": blob.size, "sha256": blob.sha256} for name, blob in contents.items()]
    return line({"types": types})


def pieces(contents: Contents) -> Iterator[bytes]:
    """Yield all that goes on the stream."""
    yield header(contents)
    for blob in contents.values():
        yield from blob.pieces()


def failure(error: VirtagentError) -> bytes:
    """Return the line that tells an error."""
    return line({"error": {"kind": error.kind.value, "message": str(error)[:MESSAGE_MAX]}})


def line(document: dict[str, Any]) -> bytes:
    """Return a document as a line."""
    return json.dumps(document).encode() + b"\n"


def parse_line(text: bytes | bytearray) -> dict[str, Any]:
    """Return the document of a line.

    Raises:
        Elsewhere: it tells an error.
        RemoteProtocolError: it is none of ours.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RemoteProtocolError("the other end's clipboard sent a line that is no JSON object")
    if "error" in document:
        raise _told(document["error"])
    return document


def _told(error: object) -> VirtagentError:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        for kind in FailureKind:
            if kind.value == error.get("kind"):
                return Elsewhere(kind, error["message"][:MESSAGE_MAX])
    return RemoteProtocolError("the other end's clipboard told an error in a form that is not ours")


class LineReader:
    """Cuts a stream into lines of a bounded length."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes | bytearray) -> None:
        """Take what came."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next line; None: it is not there yet. Raises RemoteProtocolError: it is too long."""
        end = self._buffer.find(b"\n", 0, LINE_MAX)
        if end < 0:
            if len(self._buffer) >= LINE_MAX:
                raise RemoteProtocolError("the other end's clipboard sent a line that is too long")
            return None
        text = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return text

    def rest(self) -> bytes:
        """Return what is behind the lines that were taken, and forget it."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


class BundleReader:
    """Reads contents off a stream.

    Args:
        limit: bytes of all types together.
        known: contents that are here already. If the header says that it is those, they are what came.

    Attributes:
        done: whether all is there; what follows need not be read.
    """

    def __init__(self, limit: int, known: Contents | None = None) -> None:
        self._limit, self._known = limit, known
        self._lines: LineReader | None = LineReader()
        self._expected: list[tuple[str, int, str]] = []
        self._blobs: dict[str, Blob] = {}
        self.done = False

    def feed(self, data: bytes | bytearray) -> None:
        """Take what came.

        Raises:
            TooLarge: it is more than the limit.
            Elsewhere: the other end tells an error.
            RemoteProtocolError: it is not what this page says.
        """
        if self._lines is not None:
            self._lines.push(data)
            text = self._lines.next()
            if text is None:
                return
            data = self._lines.rest()
            self._lines = None
            self._expected = self._check(parse_line(text))
            if self._known and self._known.digests() == {name: digest for name, _, digest in self._expected}:
                self._blobs, self._expected, self.done = dict(self._known), [], True
                return
            for name, _, _ in self._expected:
                self._blobs[name] = Blob()
        self._take(memoryview(data))

    def finish(self) -> Contents:
        """Return what came, at the end of the stream. Raises RemoteProtocolError: something is missing."""
        if not self.done:
            raise RemoteProtocolError("the clipboard's contents were cut off")
        return Contents(self._blobs)

    def _take(self, data: memoryview) -> None:
        at = 0
        while self._expected:
            name, size, digest = self._expected[0]
            blob = self._blobs[name]
            part = data[at : at + size - blob.size]
            blob.append(part)
            at += len(part)
            if blob.size < size:
                return
            if blob.sha256 != digest:
                raise RemoteProtocolError(f"the clipboard's {name} arrived otherwise than it was sent")
            self._expected.pop(0)
        if at < len(data):
            raise RemoteProtocolError("the other end's clipboard sent more than it said")
        self.done = True

    def _check(self, document: dict[str, Any]) -> list[tuple[str, int, str]]:
        entries = described(document)
        total = sum(size for _, size, _ in entries)
        if total > self._limit:
            raise too_large(self._limit, total)
        return entries


def described(document: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Return name, size and digest of each type of a header.

    Raises:
        RemoteProtocolError: it is no header.
    """
    wrong = RemoteProtocolError("the other end's clipboard sent a header that is not ours")
    entries = document.get("types")
    if not isinstance(entries, list) or len(entries) > TYPES_MAX:
        raise wrong
    found: list[tuple[str, int, str]] = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise wrong
        name, size, digest = entry.get("type"), entry.get("size"), entry.get("sha256")
        if not isinstance(name, str) or not is_name(name) or any(name == other for other, _, _ in found):
            raise wrong
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise wrong
        found.append((name, size, digest))
    return found
