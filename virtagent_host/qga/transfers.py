"""va.read_tree and va.write_tree by guest-file-*: single files of a guest that has only qemu-ga.

The rules:

1. The guest's part of a tree stream (SPEC.md section 13) is played here, with one file as its root.
   Directories are refused, saying why.
2. A file that is received stands under its name only when it is whole: it is written beside it, and renamed
   and given its mode by the guest's /bin/sh, since qemu-ga has no command for either.
3. What the guest does not tell (mode and time of a file) is left to the receiver. The digest covers the way
   to qemu-ga; what that does with the bytes is its own word.
4. Handles and unfinished files in the guest are cleaned up whatever happens, and for that nobody waits long.
"""

from __future__ import annotations

import base64
import os
from typing import Any

import trio

from virtagent_protocol.errors import FaultCode, RemoteFault, RemoteProtocolError, VirtagentError
from virtagent_protocol.limits import KIB
from virtagent_protocol.qga.messages import QgaError
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.trees.digests import DIGESTS, Hash, choose, new_digest
from virtagent_protocol.trees.entries import FILE, Entry, check_component
from virtagent_protocol.trees.landing import part_name
from virtagent_protocol.trees.listen import Listener
from virtagent_protocol.trees.records import Kind, Record, RecordReader, encode, head
from virtagent_protocol.values import Struct, Value, as_struct, member

from .methods import CLEAN_UP, Agent, Handler, close_file, open_file, read_piece, run_program

#: Bytes of a file in one command.
PIECE = 256 * KIB
_ONE_FILE = "transfer of directories (it has single files only)"

_FILES = frozenset({"guest-file-open", "guest-file-seek", "guest-file-read", "guest-file-close"})
_WRITING = frozenset({"guest-file-write", "guest-file-flush", "guest-exec", "guest-exec-status"})

#: With the path and the name to be used within a directory: where it goes.
_WHERE = 'if [ -d "$0" ]; then [ -n "$1" ] && printf %s "${0%/}/$1"; else printf %s "$0"; fi'
#: With the path, the unfinished file, and the mode.
_FINISH = 'chmod "$2" "$1" && mv -fT "$1" "$0"'


async def _read_tree(agent: Agent, options: Struct) -> Value:
    path, digests = _path(options), _digests(options)
    handle = await open_file(agent, path, "r")
    try:
        try:
            size = await _size(agent, handle)
            # A directory can be opened, and is found out by reading.
            first = await read_piece(agent, handle, PIECE)
        except QgaError as error:
            if "Is a directory" in error.desc:
                raise agent.cannot(_ONE_FILE) from error
            raise RemoteFault(FaultCode.OPEN_FAILED, f"open failed: {path}: {error.desc}") from error
        agent.spawn(_send, agent, agent.accept(_stream(options)), handle, first, size, digests)
    except BaseException:
        await _clean_up(agent, handle)
        raise
    return {"type": "file", "size": size}


async def _send(
    agent: Agent, stream: LinkStream, handle: int, first: tuple[bytes, bool], size: int, digests: list[str]
) -> None:
    heard = Listener()
    try:
        await _hear(stream, heard, begin=True)
        if heard.result is None:
            name = choose(heard.digests or [], digests)
            digest, sent, failure = new_digest(name), 0, ""
            try:
                await stream.send_all(encode(Kind.START, digest=name) + Entry(FILE, size=size).encode())
                piece, is_last = first
                while piece:
                    digest.update(piece)
                    sent += len(piece)
                    await stream.send_all(head(Kind.DATA, len(piece)) + piece)
                    piece, is_last = (b"", True) if is_last else await read_piece(agent, handle, PIECE)
                end = encode(Kind.CLOSE, size=sent, digest=digest.hexdigest())
            except QgaError as error:
                failure = error.desc
                end = encode(Kind.SKIP, path="", reason=failure, note=False, within=True)
            end += encode(Kind.END, entries=int(not failure), bytes=sent, kept=0, errors=int(bool(failure)))
            await stream.send_all(end)
            await _hear(stream, heard, begin=False)
        await stream.aclose()
    except trio.BrokenResourceError:
        pass  # the receiver is gone, or wants no more
    except VirtagentError as error:
        stream.reset("protocol", str(error))
    finally:
        stream.reset("cancelled")
        await _clean_up(agent, handle)


async def _hear(stream: LinkStream, heard: Listener, *, begin: bool) -> None:
    while heard.result is None and not (begin and heard.digests is not None):
        data = await stream.receive_some()
        if not data:
            raise RemoteProtocolError("the receiver ended without a result")
        heard.feed(data)


async def _write_tree(agent: Agent, options: Struct) -> Value:
    digests, into = _digests(options), _text(options.get("into", ""), "into")
    if into:
        check_component(into.encode())
    path = await _place(agent, _path(options), into)
    part = _part(path)
    handle = await open_file(agent, part, "w")
    try:
        receiving = _Receiving(agent, agent.accept(_stream(options)), path, handle, digests)
        agent.spawn(receiving.run)
    except BaseException:
        await _clean_up(agent, handle, part)
        raise
    return {"path": path}


def _part(path: str) -> str:
    """Return the path at which a file is written until it is whole: that of virtagent's agent."""
    directory, name = os.path.split(path.encode())
    return os.path.join(directory, part_name(name)).decode(errors="replace")


async def _place(agent: Agent, path: str, into: str) -> str:
    try:
        told = await run_program(agent, "/bin/sh", ["-c", _WHERE, path, into])
    except QgaError as error:
        raise RemoteFault(FaultCode.OPEN_FAILED, f"open failed: {path}: {error.desc}") from error
    found = told.output.decode(errors="replace")
    if told.status != 0 or found not in (path, f"{path.rstrip('/')}/{into}"):
        raise RemoteFault(FaultCode.OPEN_FAILED, f"open failed: {path}: this is a directory")
    return found


class _Receiving:
    """A file that is being received."""

    def __init__(self, agent: Agent, stream: LinkStream, path: str, handle: int, digests: list[str]) -> None:
        self._agent, self._stream, self._path = agent, stream, path
        self._handle: int | None = handle
        self._digests = digests
        self._digest: Hash | None = None
        self._name = ""
        self._mode = 0o644
        self._buffer = bytearray()
        self._size = 0
        self._whole = self._mismatch = self._done = False
        self._failure = ""

    async def run(self) -> None:
        """Receive it, and tell how it went."""
        fatal = ""
        try:
            await self._stream.send_all(encode(Kind.GO, digests=self._digests))
            try:
                await self._receive()
            except RemoteFault as fault:
                fatal = fault.message
            except RemoteProtocolError as error:
                fatal = str(error)
            await self._stream.send_all(self._result(fatal))
            await self._stream.aclose()
        except trio.BrokenResourceError:
            pass  # the sender is gone
        finally:
            self._stream.reset("cancelled")
            await _clean_up(self._agent, self._handle, "" if self._whole else _part(self._path))

    async def _receive(self) -> None:
        reader = RecordReader()
        async for data in self._stream:
            for record in reader.feed(bytes(data)):
                await self._take(record)
            if self._done:
                return
        raise RemoteProtocolError("the stream ended before its end record")

    async def _take(self, record: Record) -> None:
        kind, digest = record.kind, self._digest
        if kind is Kind.START and not self._name:
            self._name = record.get("digest", str)
            if self._name not in self._digests:
                raise RemoteProtocolError("the sender chose a digest that was not offered")
        elif kind is Kind.ENTRY and self._name and digest is None:
            entry = Entry.decode(record)
            if entry.type != FILE:
                raise self._agent.cannot(_ONE_FILE)
            self._digest, self._mode = new_digest(self._name), entry.mode & 0o777
        elif kind is Kind.DATA and digest is not None:
            digest.update(bytes(record.data))
            self._size += len(record.data)
            self._buffer += record.data
            if len(self._buffer) >= PIECE:
                await self._attempt(self._flush)
        elif kind is Kind.OFFSET and digest is not None:
            await self._attempt(self._flush)
            self._size = record.offset
            await self._attempt(self._seek)
        elif kind is Kind.CLOSE and digest is not None:
            await self._close(record.get("size", int), record.get("digest", str) == digest.hexdigest())
        elif kind is Kind.SKIP:
            self._failure = self._failure or record.get("reason", str)[:1000] or "it could not be sent"
        elif kind is Kind.END:
            self._done = True
        else:
            raise RemoteProtocolError(f"a record of kind {kind.name} is out of place")

    async def _attempt(self, work: Any) -> None:
        if not self._failure:
            try:
                await work()
            except QgaError as error:
                self._failure = error.desc

    async def _flush(self) -> None:
        while self._buffer:
            piece = bytes(self._buffer[:PIECE])
            given = {"handle": self._handle, "buf-b64": base64.b64encode(piece).decode("ascii")}
            answer = as_struct(_any(await self._agent.execute("guest-file-write", given)), "its answer")
            count = member(answer, "count", int)
            if not 0 < count <= len(piece):
                raise RemoteProtocolError(f"guest-file-write wrote {count} of {len(piece)} bytes")
            del self._buffer[:count]

    async def _seek(self) -> None:
        seek = {"handle": self._handle, "offset": self._size, "whence": "set"}
        await self._agent.execute("guest-file-seek", seek)

    async def _close(self, size: int, intact: bool) -> None:
        if size > self._size:
            raise self._agent.cannot("files that end in a hole")
        if size != self._size or not intact:
            self._mismatch, self._failure = True, self._failure or "it arrived otherwise than it was sent"
        await self._attempt(self._finish)

    async def _finish(self) -> None:
        await self._flush()
        await self._agent.execute("guest-file-flush", {"handle": self._handle})
        await self._agent.execute("guest-file-close", {"handle": self._handle})
        self._handle = None
        script = ["-c", _FINISH, self._path, _part(self._path), f"{self._mode:o}"]
        ended = await run_program(self._agent, "/bin/sh", script)
        if ended.status != 0:
            words = ended.errors.decode(errors="replace").strip()[:1000]
            raise QgaError(words or f"mv ended with status {ended.status}")
        self._whole = True

    def _result(self, fatal: str) -> bytes:
        errors = [["", self._failure]] if self._failure else []
        return encode(
            Kind.RESULT,
            entries=int(self._whole),
            bytes=self._size,
            errors=errors,
            failed=len(errors),
            mismatches=int(self._mismatch),
            fatal=fatal,
        )


#: See `methods.METHODS`.
METHODS: dict[str, tuple[Handler, frozenset[str]]] = {
    "va.read_tree": (_read_tree, _FILES),
    "va.write_tree": (_write_tree, _FILES - {"guest-file-read"} | _WRITING),
}


async def _size(agent: Agent, handle: int) -> int:
    sizes = []
    for whence in ("end", "set"):
        seek = {"handle": handle, "offset": 0, "whence": whence}
        answer = as_struct(
            _any(await agent.execute("guest-file-seek", seek)), "the answer to guest-file-seek"
        )
        sizes.append(member(answer, "position", int))
    # Of a directory the end is at no size at all.
    return sizes[0] if 0 <= sizes[0] < 2**62 else 0


async def _clean_up(agent: Agent, handle: int | None, part: str = "") -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_UP):
        if handle is not None:
            await close_file(agent, handle)
        if part:
            try:
                await run_program(agent, "/bin/sh", ["-c", 'rm -f "$0"', part])
            except (QgaError, VirtagentError):
                return  # it is gone, and the file is left


def _any(value: object) -> Any:
    return value


def _stream(options: Struct) -> int:
    return member(options, "stream", int)


def _path(options: Struct) -> str:
    path = _text(options.get("path"), "path")
    if not os.path.isabs(path):
        raise RemoteFault(FaultCode.INVALID_PARAMS, f"path is not absolute: {path[:200]!r}")
    return path


def _text(value: Value, name: str) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        text = None
    if not isinstance(text, str) or "\0" in text:
        raise RemoteFault(FaultCode.INVALID_PARAMS, f"{name} is not UTF-8, and qemu-ga takes nothing else")
    return text


def _digests(options: Struct) -> list[str]:
    wanted = member(options, "digests", list, [*DIGESTS])
    return [name for name in DIGESTS if name in wanted]
