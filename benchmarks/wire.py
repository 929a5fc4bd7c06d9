"""A client that speaks our protocol on the agent's channel itself: the agent's own speed.

It is what `clients.QgaClient` is to qemu-ga. Requests are made once, answers are looked at, not parsed: a
client's own time shall not count.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from virtagent_protocol import xmlrpc
from virtagent_protocol.messages import Message, Request, Response, encode
from virtagent_protocol.reader import MessageReader
from virtagent_protocol.session import Hello, Role, establish

from .clients import PATIENCE, ClientError

_EPOCH = "be7c" * 4


class WireClient:
    """One session with an agent.

    Args:
        path: the socket of its channel.
    """

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(PATIENCE)
        self._sock.connect(os.fspath(path))
        self._count = 0
        self._session = self._greet()
        body = xmlrpc.encode_call("va.ping", [])
        self._ping = encode(Request("TAGTAGTA", body, self._session))

    def ping(self) -> None:
        """One round trip."""
        self._count += 1
        tag = b"%08d" % self._count
        self._sock.sendall(self._ping.replace(b"TAGTAGTA", tag))
        answer = b""
        while not (answer.endswith(b"\xff") and b"</methodResponse>" in answer):
            answer += self._sock.recv(65536)
        if tag not in answer or b"<fault>" in answer:
            raise ClientError(f"not the answer to {tag!r}: {answer!r}")

    def close(self) -> None:
        """Close the channel."""
        self._sock.close()

    def _greet(self) -> str:
        own = Hello(Role.HOST, _EPOCH, "bench 0")
        hello = Request("hello", xmlrpc.encode_call("va.hello", [own.to_value()]))
        self._sock.sendall(encode(hello))
        reader = MessageReader()
        while True:
            data = self._sock.recv(65536)
            if not data:
                raise ClientError("the agent closed the channel")
            for event in reader.feed(data):
                if isinstance(event, Response) and event.tag == "hello":
                    value, fault = xmlrpc.decode_response(event.body)
                    if fault is not None:
                        raise ClientError(f"the agent refused our hello: {fault[1]}")
                    return establish(own, Hello.from_value(value)).id
                self._answer(event, own)

    def _answer(self, event: object, own: Hello) -> None:
        """Answer the agent's own hello: it does not believe in a session before."""
        if isinstance(event, Request):
            reply: Message = Response(event.tag, xmlrpc.encode_result(own.to_value()))
            self._sock.sendall(encode(reply))
