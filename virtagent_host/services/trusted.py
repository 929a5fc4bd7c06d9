"""Whether a file is safe from everybody but root and the user of this process.

A service runs with the rights of va-host, and a policy says who may have it run: a file that somebody else
can change, or put another in the place of, is as good as his. So all directories on the way count, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from virtagent_protocol.errors import FailureKind, VirtagentError


class Untrusted(VirtagentError):
    """Somebody else could change the file. The message names what, and the remedy."""

    kind = FailureKind.REFUSED


def check_trusted(path: str) -> str:
    """Return the path without links of a file that only root and we can change.

    Raises:
        Untrusted: others could.
        OSError: it is not there, or cannot be looked at.
    """
    real = os.path.realpath(path, strict=True)
    for part in _with_parents(real):
        found = os.stat(part)
        if found.st_uid not in (0, os.geteuid()):
            raise Untrusted(
                f"{path} is not used: {part} belongs to user id {found.st_uid}; "
                f"it must belong to root, or to the user of va-host (run: chown root {part})"
            )
        # Where the sticky bit is set, nobody can replace what is another's.
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & 0o022 and not sticky:
            raise Untrusted(f"{path} is not used: others may write to {part} (run: chmod go-w {part})")
    return real


def _with_parents(path: str) -> Iterator[str]:
    while True:
        yield path
        above = os.path.dirname(path)
        if above == path:
            return
        path = above
