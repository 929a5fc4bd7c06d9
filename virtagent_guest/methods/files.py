"""va.getfile: read a file, or a part of one.

The rules:

1. What the caller gets is bytes, whatever they are.
2. A size tells nothing: files of /proc and /sys have size 0 or 4096 and any content. Reading goes
   on to the end of file, or to the limit.
3. Opening can block, or do something (a FIFO waits for its writer, /dev/watchdog arms the
   watchdog), so only what is a regular file gets opened; those of /proc and /sys are regular files, too.
4. Reading can block for ever (a dead NFS server). It happens in a thread that owns the file; a
   cancelled call abandons the thread, and the thread ends itself at its next piece.
"""

from __future__ import annotations

import os
import stat

import trio

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Call, Registry

registry = Registry()

#: Bytes in one result: as base64 they must fit an RPC body (2 MiB) with its envelope.
RESULT_MAX = 1500 * 1024
#: Bytes in one read(2); between two of them a cancelled reader stops.
PIECE = 64 * 1024

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@registry.method("va.getfile")
async def getfile(call: Call, path: str, offset: int = 0, count: int = -1) -> bytes:
    """Return the content of a file: count bytes from offset on, or less if it ends before; -1: all of it.

    Larger files than one answer can carry are read in parts.
    """
    if not path.startswith("/"):
        raise Fault(FaultCode.INVALID_PARAMS, f"path must be absolute: {path!r}")
    if offset < 0:
        raise Fault(FaultCode.INVALID_PARAMS, f"offset must not be negative: {offset}")
    if not -1 <= count <= RESULT_MAX:
        raise Fault(FaultCode.INVALID_PARAMS, f"count must be -1, or 0 to {RESULT_MAX} (bytes): {count}")
    try:
        # UTF-8 whatever the agent's locale, so that a path means the same in every guest.
        encoded = path.encode()
    except UnicodeEncodeError:
        raise Fault(FaultCode.INVALID_PARAMS, f"path is not text: {path!r}") from None
    return await trio.to_thread.run_sync(_read, encoded, path, offset, count, abandon_on_cancel=True)


def _read(encoded: bytes, path: str, offset: int, count: int) -> bytes:
    fd = _open(encoded, path)
    try:
        if offset:
            os.lseek(fd, offset, os.SEEK_SET)
        # One byte more than may be sent tells "exactly the limit" from "more".
        content = _read_up_to(fd, RESULT_MAX + 1 if count == -1 else count)
    except OSError as error:
        raise Fault(FaultCode.READ_FAILED, f"read failed: {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(content) > RESULT_MAX:
        raise Fault(
            FaultCode.TOO_LARGE,
            f"max file size ({RESULT_MAX} bytes) exceeded: {path}: read it in parts with offset and count",
        )
    return content


def _open(encoded: bytes, path: str) -> int:
    try:
        _refuse_special(os.stat(encoded), path)
        # Another file may have taken the name since: do not wait for that one, and look again.
        fd = os.open(encoded, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: the path has a NUL in it
        reason = error.strerror if isinstance(error, OSError) else error
        raise Fault(FaultCode.OPEN_FAILED, f"open failed: {path}: {reason}") from error
    try:
        _refuse_special(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_special(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise Fault(FaultCode.OPEN_FAILED, f"open failed: {path}: {kind}, not a regular file")


def _read_up_to(fd: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) < limit:
        trio.from_thread.check_cancelled()
        try:
            # Whole pieces, cut below: some files of /proc refuse a read of an odd length.
            piece = os.read(fd, PIECE)
        except BlockingIOError:
            break  # such as /proc/kmsg: nothing more for now
        if not piece:
            break
        data += piece
    return bytes(data[:limit])
