"""What a receiver has already of a tree that is sent once more: whole files, and parts of others."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from .entries import to_json
from .landing import PART_HEAD, PART_TAIL, part_size
from .listen import KEPT_BYTES_MAX, KEPT_MAX
from .place import DEPTH_MAX, Place, enter, status_of
from .records import Kind, encode


def inventory(place: Place) -> Iterator[bytes]:
    """Yield KEPT records of what is there, as far as the sender takes them."""
    count, size = 0, 0
    for path, record in _kept(place.directory, place.name, b"", 0):
        count, size = count + 1, size + len(path)
        if count > KEPT_MAX or size > KEPT_BYTES_MAX:
            return
        yield record


def _kept(parent: int, name: bytes, path: bytes, depth: int) -> Iterator[tuple[bytes, bytes]]:
    try:
        status = status_of(parent, name)
        if part := part_size(parent, name):
            yield path, encode(Kind.KEPT, path=to_json(path), size=part, part=True)
        if status is None:
            return
        if stat.S_ISREG(status.st_mode):
            fields = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
            yield path, encode(Kind.KEPT, path=to_json(path), **fields)
        elif stat.S_ISDIR(status.st_mode) and depth <= DEPTH_MAX:
            directory = enter(parent, name)
            try:
                # A part alone, of a file that is not there yet, stands for its name.
                names = {_whole_name(os.fsencode(item)) for item in os.listdir(directory)}
                for item in sorted(names):
                    yield from _kept(directory, item, path + b"/" + item if path else item, depth + 1)
            finally:
                os.close(directory)
    except OSError:
        return  # then it is sent again, and what is wrong will be told of that


def _whole_name(name: bytes) -> bytes:
    whole = name[len(PART_HEAD) : -len(PART_TAIL)]
    is_part = name.startswith(PART_HEAD) and name.endswith(PART_TAIL) and whole not in (b"", b".", b"..")
    return whole if is_part else name
