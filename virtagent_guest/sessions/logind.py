"""In which session of logind a process runs, as the kernel knows it: by its control group, else by its audit
session.

It is no proof of anything. A user's processes can be moved within what the user's own manager was given, the
process may have ended and its number be another's; but none of that changes the user id, which comes from
elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path

#: What a process of a user's manager (user@UID.service) is in: no session, but all of the user's.
MANAGER = "user"
#: What no session is known of.
NONE = "none"

# Only what logind itself makes: below that, users name their groups as they like.
_GROUP = re.compile(
    r"^(?:0:|\d+:name=systemd):/user\.slice/user-\d+\.slice/(?:session-(\w+)\.scope|user@\d+\.service)(?:/|$)",
    re.ASCII | re.MULTILINE,
)
#: A process that nobody has logged in for has the id -1.
_UNSET = str(2**32 - 1)


def session_of(pid: int, proc: Path = Path("/proc")) -> str:
    """Return the id of logind's session, such as ``2`` or ``c1``; or `MANAGER`, or `NONE`.

    Args:
        pid: of the process.
        proc: where procfs is.
    """
    try:
        match = _GROUP.search((proc / str(pid) / "cgroup").read_text())
        if match is not None:
            return match[1] or MANAGER
        audited = (proc / str(pid) / "sessionid").read_text().strip()
    except (OSError, ValueError):
        return NONE
    return audited if audited.isdecimal() and audited != _UNSET else NONE
