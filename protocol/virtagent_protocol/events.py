"""Events from the guest, as both ends know them: what one is, and how they travel (SPEC.md, Events).

The rules:

1. An event has a name, data, the guest's time, and who caused it, if that was a program of the guest. It has
   a number: in one log each event has the one after the last, from 1 on. A log is the life of an agent's
   memory of events.
2. Its data is a JSON object, and travels as the text of one: a string of JSON holds what XML has no form for.
3. Events travel in batches, in order. The answer says up to which number the other end has them; only then
   are they forgotten here. What is not confirmed is sent again, and whoever has it already drops it.
4. A number that is missing is an event that is lost: it had no room. So nothing is lost silently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import LocalProtocolError, RemoteProtocolError
from .values import Struct, Value, as_struct, member

METHOD = "va.events"

#: Characters of a name: it becomes a line's beginning, a glob's subject and an environment variable.
NAME_MAX = 64
#: Lower case: QMP's own events are upper case, so neither can be taken for the other.
NAME = re.compile(r"[a-z][a-z0-9]*(?:[._-][a-z0-9]+)*")
#: Characters of the JSON text of an event's data. It is news, not a file.
DATA_MAX = 8192
#: Arrays and objects in one another: any reader of JSON takes these.
DATA_DEPTH_MAX = 32
#: Characters of a user's name.
USER_MAX = 64
#: Events of one batch, and characters of their data: a message that is read within a few milliseconds.
BATCH_EVENTS_MAX = 64
BATCH_DATA_MAX = 128 * 1024

#: Numbers of events: what every JSON reader keeps exactly.
SEQUENCE_MAX = 2**53 - 1
#: Microseconds since 1970 that a calendar has a date for: the end of the year 9999.
_TIME_MAX = 253_402_300_799_000_000
_LOG = re.compile(r"[0-9a-f]{16}")
_ID_MAX = 2**32 - 1


@dataclass(frozen=True)
class GuestEvent:
    """One event.

    Attributes:
        sequence: its number in its log.
        time: when it happened by the guest's clock, in microseconds since 1970.
        name: what happened.
        data: the JSON text of an object.
        caller: pid, uid, gid and user of the program that caused it; None: the agent itself saw it.
    """

    sequence: int
    time: int
    name: str
    data: str
    caller: Struct | None = None

    def to_value(self) -> Struct:
        """Return the struct that travels."""
        value: Struct = {
            "sequence": self.sequence,
            "time": self.time,
            "name": self.name,
            "data": self.data,
        }
        return value if self.caller is None else {**value, "caller": self.caller}

    @classmethod
    def from_value(cls, value: Value) -> GuestEvent:
        """Read a received event.

        Raises:
            RemoteProtocolError: it is not what the rules say.
        """
        struct = as_struct(value, "an event")
        name, data = member(struct, "name", str), member(struct, "data", str)
        try:
            check_name(name)
            parse_data(data)
        except LocalProtocolError as error:
            raise RemoteProtocolError(str(error)) from None
        return cls(
            sequence=_within(struct, "sequence", 1, SEQUENCE_MAX),
            time=_within(struct, "time", 0, _TIME_MAX),
            name=name,
            data=data,
            caller=_caller(member(struct, "caller", dict)) if "caller" in struct else None,
        )


@dataclass(frozen=True)
class Batch:
    """Events under way to the other end.

    Attributes:
        log: 16 hex digits: the log whose numbers they have.
        confirmed: the number up to which somebody has confirmed them before.
        events: in order; of rising numbers, all above *confirmed*.
    """

    log: str
    confirmed: int
    events: Sequence[GuestEvent]

    def to_value(self) -> Struct:
        """Return the struct that is the parameter of `va.events`."""
        events: list[Value] = [event.to_value() for event in self.events]
        return {"log": self.log, "confirmed": self.confirmed, "events": events}

    @classmethod
    def from_value(cls, value: Value) -> Batch:
        """Read a received batch.

        Raises:
            RemoteProtocolError: it is not what the rules say.
        """
        struct = as_struct(value, "the parameter")
        log = check_log(member(struct, "log", str))
        confirmed = _within(struct, "confirmed", 0, SEQUENCE_MAX)
        received = member(struct, "events", list)
        if not 1 <= len(received) <= BATCH_EVENTS_MAX:
            raise RemoteProtocolError(f"a batch has 1 to {BATCH_EVENTS_MAX} events, not {len(received)}")
        events = []
        last = confirmed
        for item in received:
            event = GuestEvent.from_value(item)
            if event.sequence <= last:
                raise RemoteProtocolError(
                    f"the numbers of events must rise, not go from {last} to {event.sequence}"
                )
            last = event.sequence
            events.append(event)
        return cls(log, confirmed, events)


def check_log(log: str) -> str:
    """Return *log* if it may be the id of a log. Raises RemoteProtocolError."""
    if not _LOG.fullmatch(log):
        raise RemoteProtocolError("the id of a log must be 16 hex digits")
    return log


def check_name(name: str) -> str:
    """Return *name* if it may name an event.

    Raises:
        LocalProtocolError: it may not; the message says what does.
    """
    if len(name) > NAME_MAX or not NAME.fullmatch(name):
        raise LocalProtocolError(
            f"{name[:NAME_MAX]!r} cannot be an event's name: use up to {NAME_MAX} lower-case letters and "
            "digits, a letter first, and '.', '_' or '-' between them, such as backup.done"
        )
    return name


def data_text(data: Any) -> str:
    """Return the JSON text of an event's data.

    Args:
        data: a dict of what JSON carries.

    Raises:
        LocalProtocolError: it is something else, or too much.
    """
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"an event's data must be what JSON carries: {error}") from None
    parse_data(text)
    return text


def parse_data(text: str) -> dict[str, Any]:
    """Return an event's data from its JSON text.

    Raises:
        LocalProtocolError: it is none, or too much.
    """
    if len(text) > DATA_MAX:
        raise LocalProtocolError(
            f"an event's data has {len(text)} characters of JSON, at most {DATA_MAX} are allowed"
        )
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise LocalProtocolError(f"an event's data is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise LocalProtocolError('an event\'s data must be a JSON object, such as {"bytes": 12345}')
    if _depth(data) > DATA_DEPTH_MAX:
        raise LocalProtocolError(f"an event's data may be nested {DATA_DEPTH_MAX} deep at most")
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number that JSON has")


def _depth(data: object) -> int:
    depth, level = 0, [data]
    while level:
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)  # type: ignore[attr-defined]
            if isinstance(inner, (dict, list))
        ]
        depth += 1
    return depth


def _within(struct: Struct, name: str, least: int, most: int) -> int:
    number = member(struct, name, int)
    if not least <= number <= most:
        raise RemoteProtocolError(f"member '{name}' must be {least} to {most}, it is {number}")
    return number


def _caller(struct: Struct) -> Struct:
    ids = {name: _within(struct, name, 0, _ID_MAX) for name in ("pid", "uid", "gid")}
    user = member(struct, "user", str)
    if len(user) > USER_MAX:
        raise RemoteProtocolError(f"member 'user' has more than {USER_MAX} characters")
    return {**ids, "user": user}
