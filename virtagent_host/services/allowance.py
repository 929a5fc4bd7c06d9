"""What the guest of one VM may still cost: calls at a time and in a minute, of all its users and of one.

There is no queue. Who is refused is told so at once, and may come again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from virtagent_protocol.bucket import TokenBucket
from virtagent_protocol.errors import Fault, FaultCode

from .rules import Limits

#: Users of a guest that are told apart; of more, those that called longest ago begin anew. The guest may
#: claim any number.
USERS_MAX = 256


class Allowance:
    """Counts the calls of one guest."""

    def __init__(self) -> None:
        self._running: Counter[int] = Counter()
        self._limits = Limits()
        self._all = _bucket(self._limits.per_minute)
        self._users: OrderedDict[int, TokenBucket] = OrderedDict()

    @property
    def running(self) -> int:
        """How many calls run."""
        return self._running.total()

    def take(self, uid: int, limits: Limits, now: float) -> None:
        """Count a call that begins; `give_back` ends it.

        Args:
            uid: whose it is, in the guest.
            limits: that hold now.
            now: seconds of a clock that does not go back.

        Raises:
            Fault: QUEUE_FULL: there is no room for it; the message says which limit it was.
        """
        if limits != self._limits:
            self._limits = limits
            self._all = _bucket(limits.per_minute)
            self._users.clear()
        if self.running >= limits.calls:
            raise _full(f"{limits.calls} calls of this guest are running, which is all that may")
        if self._running[uid] >= limits.calls_per_user:
            raise _full(f"{limits.calls_per_user} calls of this user are running, which is all that may")
        mine = self._users.setdefault(uid, _bucket(limits.per_minute_per_user))
        self._users.move_to_end(uid)
        if len(self._users) > USERS_MAX:
            self._users.popitem(last=False)
        if not mine.has(now):
            raise _full(f"this user may begin {limits.per_minute_per_user} calls in a minute")
        if not self._all.take(now):
            raise _full(f"this guest may begin {limits.per_minute} calls in a minute")
        mine.take(now)
        self._running[uid] += 1

    def give_back(self, uid: int) -> None:
        """A call has ended."""
        self._running[uid] -= 1
        if not self._running[uid]:
            del self._running[uid]

    @contextmanager
    def held(self, uid: int) -> Iterator[None]:
        """Give back at the end of the block what was taken before."""
        try:
            yield
        finally:
            self.give_back(uid)


def _bucket(per_minute: int) -> TokenBucket:
    return TokenBucket(per_minute, per_minute / 60)


def _full(what: str) -> Fault:
    return Fault(FaultCode.QUEUE_FULL, f"{what}: try again later")
