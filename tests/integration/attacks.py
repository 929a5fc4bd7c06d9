"""What a hostile end of a link can say: endless bytes for one that has said hello.

Each attack is a generator of what to send next, for ever; who runs it ends it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

from tests.integration.hostilelab import ESCAPES, hello
from virtagent_protocol import xmlrpc
from virtagent_protocol.limits import BODY_MAX
from virtagent_protocol.messages import Cancel, Message, Request, Response, StreamData, encode
from virtagent_protocol.session import Role
from virtagent_protocol.values import Value

#: Takes the session and the role of the attacker.
Attack = Callable[[str, Role], Iterator[bytes]]


def _call(method: str, *params: Value) -> bytes:
    return xmlrpc.encode_call(method, list(params))


def _own(session: str, role: Role) -> str:
    """Return the epoch of the end with this role."""
    return session[:16] if role is Role.HOST else session[17:]


def _document(content: bytes, unit: bytes = b"") -> bytes:
    """A call of system.multicall with this value, filled up to the limit with the unit at the place of %."""
    body = b"<methodCall><methodName>system.multicall</methodName><params><param>%b</param></params>"
    body += b"</methodCall>"
    before, _, after = (body % content).partition(b"%")
    return before + unit * ((BODY_MAX - len(body) - len(content)) // max(len(unit), 1)) + after


def _requests(session: str, *bodies: bytes) -> Iterator[bytes]:
    for number, body in enumerate(itertools.cycle(bodies)):
        yield encode(Request(f"g-{number}", body, session))


def nonsense(session: str, role: Role) -> Iterator[bytes]:
    noise = bytes(range(256)) * 256
    yield from itertools.repeat(noise + noise[::-1] + b"\xffPOST /RPC2 HTTP/1.1\r\n" * 1000)


def nothing_but_0xff(session: str, role: Role) -> Iterator[bytes]:
    yield from itertools.repeat(b"\xff" * 65536)


def cut_short_messages(session: str, role: Role) -> Iterator[bytes]:
    yield from itertools.repeat(b"\xffa" * 65536)


def a_body_full_of_fragments(session: str, role: Role) -> Iterator[bytes]:
    """A body that turns out not to end where it said is searched: for a million pieces of messages."""
    whole = encode(Request("t", b"\xffa" * (BODY_MAX // 2), session))
    yield from itertools.repeat(whole[:-1] + b"x")


def a_body_full_of_bodies(session: str, role: Role) -> Iterator[bytes]:
    """As before, and each piece claims a body of its own, with a checksum that is wrong."""
    head = b"\xffPOST /RPC2 HTTP/1.1\r\nContent-Type: text/xml\r\nX-Virtagent-Client-Tag: t\r\n"
    head += b"X-Virtagent-CRC: 00000000\r\nContent-Length: %07d\r\n\r\n"
    size = len(head % 0)
    # All bodies end at the same byte; a length has no leading zeros, so the last million bytes are plain.
    whole = BODY_MAX - BODY_MAX % size
    heads = b"".join(head % (whole - at - size) for at in range(0, whole - 1_000_000 - size, size))
    yield from itertools.repeat(heads + b"x" * (whole - len(heads)) + b"\xff")


def entity_bombs(session: str, role: Role) -> Iterator[bytes]:
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(20))
    bomb = (
        f'<!DOCTYPE x [<!ENTITY e0 "ha">{entities}]><methodCall><methodName>&e20;</methodName></methodCall>'
    )
    external = b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><methodCall><methodName>x</methodName></methodCall>'
    yield from _requests(session, bomb.encode(), external)


def tiny_values(session: str, role: Role) -> Iterator[bytes]:
    yield from _requests(
        session,
        _document(b"<value><array><data>%</data></array></value>", b"<value/>"),
        _document(b"<value>%</value>", b"<nil/>"),
    )


def as_many_values_as_are_allowed(session: str, role: Role) -> Iterator[bytes]:
    """Each becomes an error in the answer, and is 30 times as long there."""
    yield from _requests(session, *[_call("system.multicall", [""] * 32000)] * 4)


def deep_nesting(session: str, role: Role) -> Iterator[bytes]:
    yield from _requests(session, _document(b"%", b"<value><array><data>"), _document(b"%", b"<x>"))


def attributes_namespaces_and_comments(session: str, role: Role) -> Iterator[bytes]:
    attributes = b" ".join(b"a%x=''" % n for n in range(BODY_MAX // 11))
    namespaces = b" ".join(b"xmlns:a%x='b'" % n for n in range(BODY_MAX // 20))
    yield from _requests(
        session,
        _document(b"<value " + attributes + b"/>"),
        _document(b"<value " + namespaces + b"/>"),
        _document(b"%<value/>", b"<!---->"),
        _document(b"%<value/>", b"<?a?>"),
        _document(b"<value><base64>%</base64></value>", b"A A A A "),
    )


def huge_lengths(session: str, role: Role) -> Iterator[bytes]:
    head = b"\xffPOST /RPC2 HTTP/1.1\r\nContent-Type: text/xml\r\nX-Virtagent-Client-Tag: t\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    lengths = [BODY_MAX, BODY_MAX + 1, 9_999_999_999, 10**300]
    yield from itertools.repeat(b"".join(head % length + b"x" * 70000 for length in lengths))


def endless_headers(session: str, role: Role) -> Iterator[bytes]:
    yield b"\xffPOST /RPC2 HTTP/1.1\r\n"
    yield from itertools.repeat(b"X-Header: value\r\n" * 4000)


def trickled_bytes(session: str, role: Role) -> Iterator[bytes]:
    yield from (bytes([byte]) for byte in itertools.cycle(encode(Request("t", _call("va.ping"), session))))


def a_flood_of_requests(session: str, role: Role) -> Iterator[bytes]:
    requests = [encode(Request(f"g-{n}", _call("va.ping"), session)) for n in range(10_000)]
    yield from itertools.repeat(b"".join(requests))


def a_flood_of_calls_to_nothing(session: str, role: Role) -> Iterator[bytes]:
    body = _call("no.such.method", "x" * 1000)
    yield from itertools.repeat(b"".join(encode(Request(f"n-{n}", body, session)) for n in range(1000)))


def names_that_are_megabytes_long(session: str, role: Role) -> Iterator[bytes]:
    name = b"<methodCall><methodName>" + b"\xc2\x9b" * 10**6 + b"</methodName></methodCall>"
    yield from _requests(session, name, _call("system.methodHelp", "x" * 2 * 10**6))


def texts_that_take_four_times_their_length(session: str, role: Role) -> Iterator[bytes]:
    """One wide character makes Python hold all others as wide."""
    text = "\U0001f600" + "x" * (BODY_MAX - 1000)
    yield from _requests(session, _call("system.multicall", [text]), _call("system.methodHelp", text))


def a_flood_of_events(session: str, role: Role) -> Iterator[bytes]:
    """Each batch as large as may be, of a log of its own, with gaps; and data that is no good."""
    large, deep = json.dumps({"text": ESCAPES * 10 + "x" * 1200}), '{"a":' * 1600
    for number in itertools.count():
        batches: list[bytes] = []
        for data in (large, "{}", deep):
            events: list[Value] = [
                {"sequence": n * 10**9 + 1, "time": number, "name": "flood", "data": data} for n in range(64)
            ]
            batches.append(_call("va.events", {"log": f"{number:016x}", "confirmed": 0, "events": events}))
        yield from (encode(Request(f"e-{number}-{n}", body, session)) for n, body in enumerate(batches))


def everything_that_may_wait(session: str, role: Role) -> Iterator[bytes]:
    """Answers as long as a message in every slot, and behind them a queue of what takes most memory."""
    long_answer = _call("system.multicall", [""] * 7000)
    text = _call("system.multicall", ["\U0001f600" + "x" * (BODY_MAX - 1000)])
    yield from _requests(session, *[long_answer] * 4, *[text] * 20)


def replies_to_tags_never_sent(session: str, role: Role) -> Iterator[bytes]:
    other = _own(session, role.other)
    body = xmlrpc.encode_result("x")
    tags = [tag for n in range(2000) for tag in (f"{other}-{n:08x}", f"never-{n}")]
    messages: list[Message] = [Response(tag, body, session) for tag in tags]
    messages += [Cancel(tag, session) for tag in tags]
    messages += [StreamData(n + 1, b"x", session) for n in range(2000)]
    yield from itertools.repeat(b"".join(map(encode, messages)))


def hellos_with_new_epochs(session: str, role: Role) -> Iterator[bytes]:
    for start in itertools.count(0, 1000):
        yield b"".join(hello(role, f"{n:016x}", f"agent {n}", f"{n}") for n in range(start, start + 1000))


def hellos_with_the_same_epoch(session: str, role: Role) -> Iterator[bytes]:
    yield from itertools.repeat(hello(role, _own(session, role)) * 1000)


def hellos_that_make_no_sense(session: str, role: Role) -> Iterator[bytes]:
    """Each ends the session, or would, with a reason of its own."""
    for number in itertools.count():
        protocols: list[Value] = ["9.9"] * 16
        struct: dict[str, Value] = {
            "role": role.value,
            "epoch": f"{number:016x}",
            "agent": f"{ESCAPES} {number}" * 99,
        }
        struct |= {"protocols": protocols, "limits": {"requests": 1, "body": 1, "stream_body": 1}}
        wrong = Request("x", _call("va.hello", struct))
        fault = Response(f"{_own(session, role.other)}-00000001", xmlrpc.encode_fault(4, ESCAPES * 1000))
        both = hello(role.other, f"{number:016x}", f"{ESCAPES} {number}")
        yield (encode(wrong) + encode(fault) + both + hello(role, f"{number:016x}")) * 10


#: Attacks that leave the other end nothing to answer, or nothing that piles up.
TALK: list[Attack] = [
    nonsense,
    nothing_but_0xff,
    cut_short_messages,
    a_body_full_of_fragments,
    a_body_full_of_bodies,
    entity_bombs,
    tiny_values,
    deep_nesting,
    attributes_namespaces_and_comments,
    huge_lengths,
    endless_headers,
    trickled_bytes,
    replies_to_tags_never_sent,
    hellos_with_the_same_epoch,
    hellos_that_make_no_sense,
]
#: Attacks that make it owe answers: worth trying without reading them, too.
QUESTIONS: list[Attack] = [
    as_many_values_as_are_allowed,
    a_flood_of_requests,
    a_flood_of_calls_to_nothing,
    names_that_are_megabytes_long,
    texts_that_take_four_times_their_length,
    everything_that_may_wait,
    a_flood_of_events,
    hellos_with_new_epochs,
]
