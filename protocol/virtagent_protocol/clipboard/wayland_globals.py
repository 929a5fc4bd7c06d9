"""What a Wayland compositor offers: asked for with the first two requests of the protocol.

wl-paste would, without a data-control protocol, open a window and wait for somebody to look at it. So it is
asked before, whether there is one.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

#: Seconds for the compositor to answer.
_TIME = 5.0
#: Bytes of the whole answer; there are some fifty globals.
_ANSWER_MAX = 256 * 1024

_DISPLAY, _REGISTRY, _CALLBACK = 1, 2, 3
_SYNC, _GET_REGISTRY = 0, 1
_GLOBAL = 0
_HEAD = struct.Struct("=IHH")


def wayland_globals(path: Path) -> set[str]:
    """Return the names of the interfaces that are offered. It may block for as long as `_TIME`.

    Raises:
        OSError: there is no compositor, or it does not answer.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_TIME)
        sock.connect(str(path))
        requests = [(_GET_REGISTRY, _REGISTRY), (_SYNC, _CALLBACK)]
        sock.sendall(
            b"".join(_HEAD.pack(_DISPLAY, code, 12) + struct.pack("=I", new) for code, new in requests)
        )
        return _read(sock)


def _read(sock: socket.socket) -> set[str]:
    found: set[str] = set()
    buffer = b""
    taken = 0
    while taken < _ANSWER_MAX:
        if not (data := sock.recv(4096)):
            raise ConnectionResetError("the compositor closed the connection")
        buffer += data
        taken += len(data)
        while len(buffer) >= _HEAD.size:
            sender, code, size = _HEAD.unpack_from(buffer)
            if size < _HEAD.size:
                raise ConnectionResetError("this is no Wayland compositor")
            if len(buffer) < size:
                break
            body, buffer = buffer[_HEAD.size : size], buffer[size:]
            if sender == _CALLBACK:
                return found
            if (sender, code) == (_REGISTRY, _GLOBAL) and len(body) >= 8:
                length = struct.unpack_from("=I", body, 4)[0]
                found.add(body[8 : 8 + length].rstrip(b"\0").decode(errors="replace"))
    raise ConnectionResetError("this is no Wayland compositor")
