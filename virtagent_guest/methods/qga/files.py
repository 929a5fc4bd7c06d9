"""guest-file-open, -close, -read, -write, -seek, -flush: files of the guest by handles.

`handles` has the rules for what is open. A new file may be written by root only and read by all, whatever the
agent's umask; qemu-ga makes it writable for everybody.
"""

from __future__ import annotations

import os
from typing import Annotated

from virtagent_protocol.limits import MIB
from virtagent_protocol.values import Struct

from . import base64text
from .command import Caller, CommandRegistry, QgaError
from .handles import Handles, OpenFile
from .schema import INT, Alternate, Enum

registry = CommandRegistry()

#: Bytes of one read, at most, and without a count (qemu-ga's numbers).
READ_MAX = 48 * MIB
READ_DEFAULT = 4096

_WHENCE = {"set": os.SEEK_SET, "cur": os.SEEK_CUR, "end": os.SEEK_END}
#: The numbers are the protocol's own; on Linux they are those of lseek(2), too.
_WHENCES = {0: os.SEEK_SET, 1: os.SEEK_CUR, 2: os.SEEK_END}
Whence = Annotated[int | str, Alternate("GuestFileWhence", INT, Enum("QGASeek", tuple(_WHENCE)))]

#: The open files of this agent.
_handles = Handles()


@registry.command("guest-file-open")
async def file_open(path: str, mode: str = "r") -> int:
    """Open a file with a mode of fopen(3), and return a handle for it."""
    return await _handles.open(path, mode)


@registry.command("guest-file-close")
async def file_close(handle: int) -> None:
    """Close an open file."""
    await _handles.close(handle)


@registry.command("guest-file-read")
async def file_read(handle: int, count: int = READ_DEFAULT, *, caller: Caller) -> Struct:
    """Read up to count bytes, or what fits the reply; count says how many came, eof whether it ended."""
    _handles.find(handle)
    if not 0 <= count <= READ_MAX:
        raise QgaError(f"value '{count}' is invalid for argument count")
    if caller.reply_max is not None:
        count = min(count, base64text.fitting(caller.reply_max))
    data, eof = await _handles.use(handle, "read file", lambda file: file.read(count))
    return {"count": len(data), "buf-b64": base64text.encode(data), "eof": eof}


@registry.command("guest-file-write")
async def file_write(handle: int, buf_b64: str, count: int | None = None) -> Struct:
    """Write bytes, or the first count of them."""
    _handles.find(handle)
    data = base64text.decode(buf_b64)
    if count is not None:
        if not 0 <= count <= len(data):
            raise QgaError(f"value '{count}' is invalid for argument count")
        data = data[:count]
    written = await _handles.use(handle, "write to file", lambda file: file.write(data))
    return {"count": written, "eof": False}


@registry.command("guest-file-seek")
async def file_seek(handle: int, offset: int, whence: Whence) -> Struct:
    """Move to offset bytes from the begin, the present position or the end; return the position."""
    _handles.find(handle)
    origin = _WHENCE[whence] if isinstance(whence, str) else _WHENCES.get(whence)
    if origin is None:
        raise QgaError(f"invalid whence code {whence}")
    position = await _handles.use(handle, "seek file", lambda file: file.seek(offset, origin))
    return {"position": position, "eof": False}


@registry.command("guest-file-flush")
async def file_flush(handle: int) -> None:
    """Wait until the writes before it have reached the kernel."""
    await _handles.use(handle, "flush file", OpenFile.flush)
