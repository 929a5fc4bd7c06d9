"""Where a fuzzer starts: inputs and words, made of the protocol's vectors."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.vectors import as_bytes, load
from virtagent_protocol import xmlrpc
from virtagent_protocol.limits import PeerLimits
from virtagent_protocol.messages import Cancel, Message, Request, Response, StreamData, encode
from virtagent_protocol.session import Hello, Role
from virtagent_protocol.values import Value

from .hostile_link import HOST_EPOCH, SESSION, host_tag

#: Inputs that a target failed on once: they are run as tests, and fuzzing goes on from them.
FOUND = Path(__file__).parent / "found"

_HELLO = Hello(Role.GUEST, "00000000000000b2", "va-guest 1.0", "boot-1")
_GREETING = Request("00000000000000b2-1", xmlrpc.encode_call("va.hello", [_HELLO.to_value()]))
_METHODS: list[Value] = ["va.ping", "va.capabilities", "va.getfile", "va.getdmesg", "va.shutdown"]
_CAPABILITIES: Value = {"agent": "a 1", "version": "1", "protocol": "1.0", "methods": _METHODS}


def seeds(target: str) -> list[bytes]:
    """Return the inputs that a target starts with: its seeds, and what was found."""
    found = sorted((FOUND / target).glob("*")) if (FOUND / target).is_dir() else []
    return [*_SEEDS[target](), *(path.read_bytes() for path in found)]


def _documents() -> list[bytes]:
    values = load("values.json")
    cases = [f"<value>{case['xml']}</value>" for case in values["written"]]
    cases += [case["xml"] for kind in ("accepted", "refused") for case in values[kind]]
    return [case.encode() for case in cases]


def _calls() -> list[bytes]:
    head = b"<?xml version='1.0'?><methodCall><methodName>va.m</methodName><params><param>"
    return [head + document + b"</param></params></methodCall>" for document in _documents()]


def _responses() -> list[bytes]:
    head = b"<?xml version='1.0'?><methodResponse><params><param>"
    tail = b"</param></params></methodResponse>"
    return [
        *(head + document + tail for document in _documents()),
        xmlrpc.encode_fault(4, "no <common>\rversion"),
    ]


def _messages() -> list[bytes]:
    cases = [*load("messages.json")["cases"], *load("resync.json")["cases"]]
    return [b"\x00" + as_bytes(case["bytes"]) for case in cases if len(case["bytes"]) < 5000]


def _hellos() -> list[bytes]:
    others = [
        Hello(Role.GUEST, "00000000000000b2", "x" * 300, protocols=("1.7", "2.0"), crc=True),
        Hello(Role.HOST, "00000000000000b2", "", limits=PeerLimits(1, 1, 1)),
        Hello(Role.GUEST, "00000000000000b2", "\x7f\u202e", protocols=("3.0",)),
    ]
    return [xmlrpc.encode_call("va.hello", [hello.to_value()]) for hello in (_HELLO, *others)]


def _conversations() -> list[bytes]:
    said: list[list[Message]] = [
        [_GREETING],
        [_GREETING, *(Request(f"g-{n}", xmlrpc.encode_call("va.ping", []), SESSION) for n in range(3))],
        [_GREETING, *(_answer(n, _CAPABILITIES) for n in range(2, 8))],
        [
            _GREETING,
            *(_answer(n, _CAPABILITIES) for n in range(2, 8)),
            *(_answer(n, b"x") for n in range(8, 16)),
        ],
        [Response(host_tag(1), xmlrpc.encode_result(_HELLO.to_value()))],
        [Response(host_tag(1), xmlrpc.encode_fault(4, "no common version"))],
        [
            _GREETING,
            Request(
                "g",
                xmlrpc.encode_call("system.multicall", [[{"methodName": "va.ping", "params": []}]]),
                SESSION,
            ),
        ],
        [
            _GREETING,
            Request("g", xmlrpc.encode_call("system.methodHelp", ["va.ping"]), SESSION),
            Cancel("g", SESSION),
        ],
        [
            _GREETING,
            StreamData(1, b"x", SESSION),
            Cancel("h", SESSION),
            Cancel("h", "0" * 16 + "-" + "1" * 16),
        ],
    ]
    return [
        mode + b"".join(map(encode, messages)) for messages in said for mode in (b"\x00", b"\x08", b"\x81")
    ]


def _talks() -> list[bytes]:
    multicall = xmlrpc.encode_call("system.multicall", [[{"methodName": "va.ping", "params": []}, "x"]])
    help_for = xmlrpc.encode_call("system.methodHelp", ["va.ping"])
    capabilities = xmlrpc.encode_result(_CAPABILITIES)
    answers = [bytes([0x80 + n]) + capabilities for n in range(2, 8)]
    results = [bytes([0x80 + n]) + xmlrpc.encode_result(b"x") for n in range(8, 16)]
    talks = [
        [b"\x40" + _GREETING.body, b"\x01" + multicall, b"\x02" + help_for, b"\x21"],
        [b"\x40" + _GREETING.body, *answers, *results],
        [b"\xc1" + xmlrpc.encode_result(_HELLO.to_value()), *answers, b"\x88" + xmlrpc.encode_fault(7, "no")],
        *([b"\x40" + hello] for hello in _hellos()),
    ]
    return [b"\x00" + b"\0".join(talk) for talk in talks]


def _answer(number: int, value: Value) -> Response:
    return Response(host_tag(number), xmlrpc.encode_result(value), SESSION)


def _json() -> list[bytes]:
    commands = [
        {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": 1},
        {"exec-oob": "va_ping", "id": {"a": [1.5e300, -0.0, None, True, "\ud83d\ude00"]}},
        {"execute": 5, "arguments": [], "id": "x" * 240},
    ]
    texts = [json.dumps(command).encode() for command in commands]
    texts += [
        b"{'execute':'it\\'s \"'}\n\xff[[[",
        b'{"a":NaN}{"a":1,"a":2}',
        b"9" * 320,
        b'"\\ud800"',
        b"[,]{]",
    ]
    return [b"\x00" + text for text in texts] + [b"\x01" + b"".join(texts)]


def _configs() -> list[bytes]:
    return [
        (Path(__file__).parents[2] / "contrib" / "guest.toml").read_bytes(),
        b'[channel]\nkind = "isa-serial:/dev/ttyS1"\nspeed = 9600\n[log]\nverbose = true\n',
        b'[channel]\nkind = ""\npath = "\\u0000"\n',
    ]


_SEEDS = {
    "reader": _messages,
    "call": lambda: _calls() + _hellos(),
    "response": _responses,
    "hello": _hellos,
    "bridge": _json,
    "link": _conversations,
    "talk": _talks,
    "config": _configs,
}

_XML = """
<methodCall> <methodResponse> <methodName> <params> <param> <value> <array> <data> <struct> <member> <name>
<fault> <nil/> <boolean> <int> <i8> <double> <string> <base64> </ <![CDATA[ ]]> <!-- --> <!DOCTYPE &#13; &amp;
"""
_HTTP = f"""
POST PUT DELETE /RPC2 /streams/1 HTTP/1.1 200 OK Content-Type: Content-Length: text/xml
X-Virtagent-Client-Tag: X-Virtagent-Session: X-Virtagent-CRC: X-Virtagent-Credit: X-Virtagent-Reason:
{SESSION} {HOST_EPOCH}
"""
_HELLO_WORDS = (
    "role epoch agent boot_id protocols limits requests body stream_body crc guest host 1.0 methods"
)
_JSON = "execute exec-oob arguments id qmp_capabilities enable oob null true 1e999 \\u0000 \\ud800 {} [] NaN"
_WORDS = {
    "reader": _HTTP,
    "call": _XML,
    "response": f"{_XML} faultCode faultString",
    "hello": f"{_XML} {_HELLO_WORDS}",
    "bridge": _JSON,
    "link": f"{_HTTP} {_XML} {_HELLO_WORDS} va.hello va.ping system.multicall methodName",
    "talk": f"{_XML} {_HELLO_WORDS} va.hello va.ping system.multicall methodName faultCode faultString",
    "config": "[channel] [log] kind path speed verbose isa-serial unix-listen 9600 true = \"\" '''",
}


def dictionary(target: str) -> str:
    """Return the words of a target's language, in the form that libFuzzer reads."""
    special = ["\\xff", "\\x0d\\x0a"] if target in ("reader", "link") else []
    words = [word.replace("\\", "\\\\").replace('"', '\\"') for word in _WORDS[target].split()]
    return "".join(f'"{word}"\n' for word in words + special)


def write(directory: Path, target: str) -> None:
    """Write a target's inputs to *directory*/corpus and its words to *directory*/words."""
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    (directory / "words").write_text(dictionary(target))
