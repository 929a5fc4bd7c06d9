"""What is fuzzed: for each parser, a function that takes any bytes and fails if a promise is broken.

They need no fuzzer: `test_targets.py` runs the seeds and all that was ever found through them. `fuzz.py`
lets atheris make up the bytes. The first byte chooses how the others are fed: the fuzzer decides that, too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.hostile_link import SESSION, host_tag, run_hostile_guest
from virtagent_guest.config import ConfigError, load
from virtagent_host.bridge.jsonstream import JsonEvent, JsonSplitter, JsonValue
from virtagent_host.bridge.messages import Refusal, encode, failure, parse_request, success
from virtagent_protocol import xmlrpc
from virtagent_protocol.counters import Counters
from virtagent_protocol.errors import Fault, ProtocolError, RemoteProtocolError
from virtagent_protocol.limits import BODY_MAX, HEADER_MAX
from virtagent_protocol.messages import Cancel, Request, Response
from virtagent_protocol.messages import encode as encode_message
from virtagent_protocol.reader import Drop, Event, MessageReader
from virtagent_protocol.session import Hello, Role, establish
from virtagent_protocol.values import Value

#: Characters of an error's message.
MESSAGE_MAX = 1000
#: Small enough for the splitter's limit to be met by inputs that a fuzzer makes.
JSON_VALUE_MAX = 256


def reader(data: bytes) -> None:
    """Any cut gives the same events; memory is bounded; what was read encodes; abandoning makes it whole."""
    size, data = _first(data)
    whole, cut = MessageReader(), MessageReader()
    whole.crc_required = cut.crc_required = bool(size & 0x80)
    events = whole.feed(data)
    parts: list[Event] = []
    for piece in _pieces(data, size & 0x7F):
        parts += cut.feed(piece)
        assert len(cut._buffer) <= HEADER_MAX + BODY_MAX + 1 + len(piece)
    assert parts == events
    for event in events:
        if not isinstance(event, Drop):
            assert MessageReader().feed(encode_message(event)) == [event]
    for _ in range(len(data) + 1):
        if not whole.incomplete:
            break
        whole.abandon()
    assert not whole.incomplete


def call(data: bytes) -> None:
    """A methodCall, or a RemoteProtocolError; what was decoded encodes, and decodes to the same."""
    try:
        name, params = xmlrpc.decode_call(data)
    except RemoteProtocolError as error:
        _check_message(error)
        return
    assert xmlrpc.decode_call(xmlrpc.encode_call(name, params)) == (name, params)


def response(data: bytes) -> None:
    """As `call`, for a methodResponse."""
    try:
        result, fault = xmlrpc.decode_response(data)
    except RemoteProtocolError as error:
        _check_message(error)
        return
    body = xmlrpc.encode_result(result) if fault is None else xmlrpc.encode_fault(*fault)
    assert xmlrpc.decode_response(body) == (result, fault)


def hello(data: bytes) -> None:
    """The parameter of a call, taken for a hello: a session, a fault, or a protocol error."""
    try:
        _, params = xmlrpc.decode_call(data)
    except RemoteProtocolError:
        return
    for value in params:
        _greet(value)


def _greet(value: Value) -> None:
    own = Hello(Role.HOST, "00000000000000a1", "fuzz")
    try:
        peer = Hello.from_value(value)
        session = establish(own, peer)
    except (ProtocolError, Fault) as error:
        _check_message(error)
        return
    assert session.id == f"{own.epoch}-{peer.epoch}"
    assert Hello.from_value(peer.to_value()) == peer


def bridge(data: bytes) -> None:
    """Any cut gives the same JSON values; memory is bounded; every value is a command or a refusal."""
    size, data = _first(data)
    events = list(JsonSplitter(JSON_VALUE_MAX).feed(data))
    splitter = JsonSplitter(JSON_VALUE_MAX)
    parts: list[JsonEvent] = []
    for piece in _pieces(data, size):
        parts += splitter.feed(piece)
        assert len(splitter._buffer) <= JSON_VALUE_MAX
    assert parts == events
    for event in events:
        if not isinstance(event, JsonValue):
            continue
        item = parse_request(event.value)
        reply = failure(item.error, item.id) if isinstance(item, Refusal) else success(None, item.id)
        assert reply.endswith(b"\r\n")
        assert encode(json.loads(reply)) == reply


def link(data: bytes) -> Counters:
    """A host's link whose guest says these bytes: commands end, memory is bounded, nothing else is raised."""
    size, data = _first(data)
    return run_hostile_guest(list(_pieces(data, 64 * (size & 0x3F))), reads=not size & 0x80)


def talk(data: bytes) -> Counters:
    """As `link`, but what a mutation would break, lengths and sessions, is always right."""
    size, data = _first(data)
    pieces = [_framed(part) for part in data.split(b"\0")]
    return run_hostile_guest(pieces, reads=not size & 0x80)


def _framed(part: bytes) -> bytes:
    kind, body = _first(part)
    if kind & 0x80:
        return encode_message(Response(host_tag(kind & 0x1F), body, None if kind & 0x40 else SESSION))
    tag = f"g-{kind & 0x1F}"
    if kind & 0x20:
        return encode_message(Cancel(tag, SESSION))
    return encode_message(Request(tag, body, None if kind & 0x40 else SESSION))


def config(data: bytes) -> None:
    """The guest's configuration file: settings, or an error that a person can read."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        try:
            load(file.name)
        except ConfigError as error:
            _check_message(error, file.name)


TARGETS: dict[str, Callable[[bytes], Any]] = {
    target.__name__: target for target in (reader, call, response, hello, bridge, link, talk, config)
}


def _check_message(error: Exception, begin: str = "") -> None:
    """What a person may see is for a person, however long the peer's words were."""
    assert str(error).startswith(begin)
    assert len(str(error)) < MESSAGE_MAX


def _first(data: bytes) -> tuple[int, bytes]:
    return (data[0], data[1:]) if data else (0, b"")


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Yield *data* in pieces of *size* bytes; 0: in one."""
    size = size or len(data) or 1
    for at in range(0, len(data), size):
        yield data[at : at + size]
