"""What the host asks a session for, as the struct of `va.session` says it, checked (SPEC.md section 11).

Numbers of streams mean nothing beyond their own link. So the request says where in the parameters they stand,
and they are replaced by those of the link to the session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtagent_protocol.errors import Fault, FaultCode, RemoteProtocolError
from virtagent_protocol.values import Struct, Value, member

#: Streams of one call: an attached process has three.
STREAMS_MAX = 4
#: Members on the way to the number of a stream: a parameter, and a struct in it.
_DEPTH_MAX = 4
#: Seconds for an answer: the most, and what holds if the request does not say.
DEADLINE_MAX = 3600.0

#: What no session is asked, whatever a policy says: calls within a call would be judged by nobody, and the
#: session with the host is not that with a session agent.
NEVER = frozenset({"system.multicall", "va.session", "va.sessions", "va.hello"})

#: Where a number stands: the index of a parameter, then names of members and indexes of items.
Place = tuple[int | str, ...]


@dataclass(frozen=True)
class ForwardRequest:
    """One request.

    Attributes:
        session: an id, or a uid in digits.
        method: of the session agent.
        params: its parameters, with the host's streams in them.
        streams: where in them.
        answer: the stream for the answer.
        deadline: seconds for the session agent to answer.
    """

    session: str
    method: str
    params: list[Value]
    streams: tuple[Place, ...]
    answer: int
    deadline: float

    def numbers(self) -> list[int]:
        """Return the numbers of the streams. Raises Fault: a place holds none."""
        return [_stream_at(self.params, place) for place in self.streams]

    def with_streams(self, numbers: Sequence[int]) -> list[Value]:
        """Return the parameters with other numbers in the same places."""
        params: Value = self.params
        for place, number in zip(self.streams, numbers, strict=True):
            params = _replaced(params, place, number)
        assert isinstance(params, list)
        return params


def parse_request(struct: Struct) -> ForwardRequest:
    """Return what a struct asks for.

    Raises:
        Fault: INVALID_PARAMS, with the member's name.
    """
    try:
        request = ForwardRequest(
            member(struct, "session", str),
            member(struct, "method", str),
            member(struct, "params", list, []),
            tuple(_place(place) for place in member(struct, "streams", list, [])),
            member(struct, "answer", int),
            member(struct, "deadline", float, DEADLINE_MAX),
        )
    except RemoteProtocolError as error:
        raise Fault(FaultCode.INVALID_PARAMS, str(error)) from None
    if len(request.streams) > STREAMS_MAX or len(set(request.streams)) < len(request.streams):
        raise Fault(FaultCode.INVALID_PARAMS, f"streams must be at most {STREAMS_MAX} places, all different")
    if not 0 < request.deadline <= DEADLINE_MAX:
        raise Fault(
            FaultCode.INVALID_PARAMS, f"deadline must be more than 0, and at most {DEADLINE_MAX:g} (s)"
        )
    if request.method in NEVER:
        raise Fault(FaultCode.INVALID_REQUEST, f"{request.method} cannot be called in a session")
    request.numbers()
    return request


def _place(value: Value) -> Place:
    items = value if isinstance(value, list) else []
    if not 0 < len(items) <= _DEPTH_MAX or not all(type(item) in (int, str) for item in items):
        raise Fault(
            FaultCode.INVALID_PARAMS,
            f"each of streams must be an array of 1 to {_DEPTH_MAX} indexes and names: its place in params",
        )
    return tuple(item for item in items if isinstance(item, (int, str)))


def _stream_at(params: list[Value], place: Place) -> int:
    found: Value = params
    for key in place:
        found = _item(found, key)
    if type(found) is not int:
        raise Fault(FaultCode.INVALID_PARAMS, f"streams: there is no number at {list(place)}")
    return found


def _item(value: Value, key: int | str) -> Value:
    if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
        return value[key]
    if isinstance(value, dict) and isinstance(key, str):
        return value.get(key)
    return None


def _replaced(value: Value, place: Place, number: int) -> Value:
    """Return a copy of the value with another number in this place, of which `_stream_at` knows."""
    if not place:
        return number
    key, rest = place[0], place[1:]
    if isinstance(value, list):
        assert isinstance(key, int)
        return [_replaced(item, rest, number) if i == key else item for i, item in enumerate(value)]
    assert isinstance(value, dict)
    return {name: _replaced(item, rest, number) if name == key else item for name, item in value.items()}
