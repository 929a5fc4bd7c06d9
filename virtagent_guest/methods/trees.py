"""va.read_tree, va.write_tree: files and trees over a stream (SPEC.md section 13).

The answer comes when the transfer has begun; how it ended is told on the stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.trees.digests import DIGESTS
from virtagent_protocol.trees.entries import check_component
from virtagent_protocol.trees.place import TreeError
from virtagent_protocol.values import Struct, Value

from ..transfers import Receiving, Sending
from .paths import flag, option, path_of

registry = Registry()


@registry.method("va.read_tree")
async def read_tree(call: Call, options: Struct) -> Struct:
    """Send a file, or with recursive a directory, on a stream: path, stream, recursive, digests.

    The result has its type, and the size of a file.
    """
    path, number, digests = path_of(options.get("path")), _stream(options), _digests(options)
    sending = Sending()
    with _until_run(sending):
        source = await sending.open(path, recursive=flag(options, "recursive"))
        call.spawn(sending.run, call.accept(number), digests)
    if source.is_directory:
        return {"type": "directory"}
    return {"type": "file", "size": source.status.st_size}


@registry.method("va.write_tree")
async def write_tree(call: Call, options: Struct) -> Struct:
    """Receive a file or tree from a stream: path, stream, into, resume, preserve, digests.

    If path is a directory and into is given, it goes into it under that name. resume goes on with what an
    earlier transfer left; preserve keeps owners and all bits of modes. The result has the path that it gets.
    """
    path, number, digests = path_of(options.get("path")), _stream(options), _digests(options)
    receiving = Receiving()
    with _until_run(receiving):
        real = await receiving.open(
            path,
            _into(options),
            resume=flag(options, "resume"),
            preserve=flag(options, "preserve"),
            digests=digests,
        )
        call.spawn(receiving.run, call.accept(number))
    return {"path": real}


@contextlib.contextmanager
def _until_run(work: Sending | Receiving) -> Iterator[None]:
    """End the work if it is not handed on to a task."""
    try:
        yield
    except TreeError as error:
        work.end()
        text = str(error).encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise Fault(FaultCode.OPEN_FAILED, f"open failed: {text}") from error
    except BaseException:
        work.end()
        raise


def _stream(options: Struct) -> int:
    number = option(options, "stream", int, None)
    if not isinstance(number, int):
        raise Fault(FaultCode.INVALID_PARAMS, "member 'stream' is missing: the id of a stream of yours")
    return number


def _digests(options: Struct) -> list[str] | None:
    names = option(options, "digests", list, None)
    if names is None:
        return None
    assert isinstance(names, list)
    known = [name for name in DIGESTS if name in names]
    if not known:
        raise Fault(FaultCode.INVALID_PARAMS, f"the digests are {', '.join(DIGESTS)}; none of them is given")
    return [name for name in names if isinstance(name, str) and name in known]


def _into(options: Struct) -> bytes:
    value: Value = options.get("into", b"")
    try:
        name = value.encode() if isinstance(value, str) else value
        if not isinstance(name, bytes):
            raise Fault(FaultCode.INVALID_PARAMS, "member 'into' must be string or base64")
        return check_component(name) if name else b""
    except (UnicodeEncodeError, RemoteProtocolError):
        raise Fault(FaultCode.INVALID_PARAMS, f"into is no name in a directory: {value!r:.80}") from None
