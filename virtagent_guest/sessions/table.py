"""The session agents that are connected.

The rules:

1. Whose a session is, the kernel says (`local.caller`). What its agent says of itself is kept as claimed,
   cut, and decides nothing.
2. An id is never used twice: it ends in a number that counts up.
3. A user has a bounded number of them, and all users together have, beyond the first of each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.link import Link
from virtagent_protocol.values import Struct

from ..local.caller import Caller
from .logind import session_of

#: Session agents of one user: one for each login at a few seats and terminals.
SESSIONS_OF_UID = 8
#: Session agents in all, beyond the first of each user: nobody locks another one out. Each may be answering
#: some calls (`forwarder`); how many users there can be is bounded by the connections (`local.server`).
SESSIONS_MAX = 64
#: Characters of what an agent claims.
CLAIM_MAX = 64
#: What an agent may claim of its session.
CLAIMS = ("type", "display", "desktop")
#: Sessions that an error lists.
_LISTED = 10


@dataclass(eq=False)
class UserSession:
    """One session agent.

    Attributes:
        id: such as ``c2-7`` or ``user-7``: of logind's session, or of the user's manager, and a number.
        caller: who it is.
        link: to it. It may break at any time.
        agent: name and version, as claimed.
        claimed: what else it claims, by the names in `CLAIMS`.
        since: when it came (`time.time`).
    """

    id: str
    caller: Caller
    link: Link
    agent: str
    claimed: dict[str, str]
    since: float = field(default_factory=time.time)

    def __str__(self) -> str:
        return f"session {self.id} ({self.caller.user}, uid {self.caller.uid})"

    def describe(self) -> Struct:
        """Return what `va.sessions` says of it."""
        return {
            "id": self.id,
            "uid": self.caller.uid,
            "user": self.caller.user,
            "pid": self.caller.pid,
            "since": self.since,
            "state": self.link.status.state.value,
            "claimed": {"agent": self.agent, **self.claimed},
        }


class SessionTable:
    """All of them, by their ids."""

    def __init__(self) -> None:
        self._sessions: dict[str, UserSession] = {}
        self._count = 0

    def __iter__(self) -> Iterator[UserSession]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, caller: Caller, link: Link, agent: str, claimed: dict[str, str]) -> UserSession:
        """Let a session agent in.

        Raises:
            Fault: QUEUE_FULL: there are too many.
        """
        of_user = sum(session.caller.uid == caller.uid for session in self)
        if of_user >= SESSIONS_OF_UID:
            raise Fault(
                FaultCode.QUEUE_FULL,
                f"uid {caller.uid} has {of_user} session agents already, which is all it may",
            )
        if of_user and len(self) >= SESSIONS_MAX:
            raise Fault(
                FaultCode.QUEUE_FULL, f"there are {len(self)} session agents, which is all there may be"
            )
        self._count += 1
        claimed = {name: text[:CLAIM_MAX] for name, text in claimed.items()}
        session = UserSession(
            f"{session_of(caller.pid)}-{self._count}", caller, link, agent[:CLAIM_MAX], claimed
        )
        self._sessions[session.id] = session
        return session

    def close(self, session: UserSession) -> None:
        """Its agent is gone."""
        del self._sessions[session.id]

    def find(self, name: str) -> UserSession:
        """Return the session of that id, or the only one of that uid.

        Args:
            name: an id; or a uid, in digits.

        Raises:
            Fault: NOT_THERE, with the ids of those that are; INVALID_PARAMS: the uid has several.
        """
        if name in self._sessions:
            return self._sessions[name]
        by_uid = name.isascii() and name.isdecimal()
        found = [session for session in self if by_uid and str(session.caller.uid) == name]
        if len(found) > 1:
            ids = ", ".join(session.id for session in found)
            raise Fault(
                FaultCode.INVALID_PARAMS, f"uid {name} has {len(found)} sessions ({ids}): name one by its id"
            )
        if not found:
            raise Fault(
                FaultCode.NOT_THERE, f"the guest has no session {name[:CLAIM_MAX]!r}; {self._listed()}"
            )
        return found[0]

    def _listed(self) -> str:
        if not self._sessions:
            return "there is none: in a session, systemctl --user start va-guest-session makes it one"
        shown = ", ".join(f"{one.id} (uid {one.caller.uid})" for one in list(self)[:_LISTED])
        more = f" and {len(self) - _LISTED} more" if len(self) > _LISTED else ""
        return f"it has {shown}{more}"


#: Those of this agent.
SESSIONS = SessionTable()
