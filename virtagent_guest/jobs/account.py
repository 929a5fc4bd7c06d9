"""As whom a process runs, and the environment that follows from it."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from virtagent_protocol.errors import Fault, FaultCode

from .request import DEFAULT_PATH, Request

#: Variables by which the service manager speaks to the agent, and to nobody else.
_OF_THE_AGENT = (
    *(b"NOTIFY_SOCKET", b"WATCHDOG_PID", b"WATCHDOG_USEC", b"LISTEN_PID", b"LISTEN_FDS", b"LISTEN_FDNAMES"),
    *(b"INVOCATION_ID", b"JOURNAL_STREAM", b"SYSTEMD_EXEC_PID", b"MEMORY_PRESSURE_WATCH"),
    *(b"MEMORY_PRESSURE_WRITE", b"MAINPID", b"MANAGERPID"),
)


@dataclass(frozen=True)
class Account:
    """An entry of the user database.

    Attributes:
        name, home, shell: as there.
        uid, gid: as there.
        groups: all that the user is in; None: those of the agent, as it is the agent's own user.
    """

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...] | None = None


def find_account(user: str | None) -> Account:
    """Return the account to run as. It may block, as the database need not be a file.

    Args:
        user: its name; None: the agent's own.

    Raises:
        Fault: INVALID_PARAMS: there is none; FAILED: the agent may not act for it.
    """
    own = os.geteuid()
    try:
        entry = pwd.getpwuid(own) if user is None else pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: there is a NUL in it
        if user is None:
            return Account(str(own), own, os.getegid(), "/", "/bin/sh")
        raise Fault(FaultCode.INVALID_PARAMS, f"the guest has no user {user[:80]!r}") from None
    account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell or "/bin/sh")
    if user is None or (entry.pw_uid == own and own != 0):
        return account
    if own != 0:
        raise Fault(
            FaultCode.FAILED,
            f"va-guest runs as user id {own}, so it cannot start processes of user {user!r}: run it as root",
        )
    groups = tuple(os.getgrouplist(account.name, account.gid))
    return Account(account.name, account.uid, account.gid, account.home, account.shell, groups)


def environment(request: Request, account: Account) -> dict[bytes, bytes]:
    """Return the variables that a process gets."""
    env: dict[bytes, bytes] = {}
    if not request.clear_env:
        env.update(os.environb)
        for name in _OF_THE_AGENT:
            env.pop(name, None)
    of_user = {
        b"HOME": os.fsencode(account.home),
        b"USER": os.fsencode(account.name),
        b"LOGNAME": os.fsencode(account.name),
        b"SHELL": os.fsencode(account.shell),
    }
    if request.user is not None:
        env.update(of_user)
    elif not request.clear_env:
        # The service manager gives its services none of these.
        env = {**of_user, **env}
    env.setdefault(b"PATH", DEFAULT_PATH.encode())
    env.update(request.env)
    return env
