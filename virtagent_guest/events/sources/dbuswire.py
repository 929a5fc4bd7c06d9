"""What comes from the system bus: bytes → jeepney's messages, without I/O.

Anybody on the bus may send us anything. So a message over `MESSAGE_MAX` is passed over without being kept,
and one that jeepney cannot parse is dropped. Neither ends the connection. (jeepney's own connection would
keep up to 128 MiB, and drop signals without a word when they come fast.)
"""

from __future__ import annotations

from typing import Any

# jeepney has no types.
from jeepney.low_level import Message, calc_msg_size  # type: ignore[import-untyped]

#: Bytes of a message. What we ask for has hundreds; a long list of units that failed, at its worst, so many.
MESSAGE_MAX = 1 << 20
#: Bytes that tell the size of a message.
_HEADER = 16


class NotDBus(Exception):
    """What came is not D-Bus at all."""


class MessageReader:
    """Takes bytes, and gives messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._to_skip = 0

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that are complete with *data*.

        Raises:
            NotDBus: there are none to be found here.
        """
        self._buffer += data
        messages: list[Any] = []
        while True:
            skipped = min(self._to_skip, len(self._buffer))
            del self._buffer[:skipped]
            self._to_skip -= skipped
            if self._to_skip or len(self._buffer) < _HEADER:
                return messages
            size = _size(bytes(self._buffer[:_HEADER]))
            if size > MESSAGE_MAX:
                self._to_skip = size
                continue
            if len(self._buffer) < size:
                return messages
            raw = bytes(self._buffer[:size])
            self._to_skip = size
            message = _parse(raw)
            if message is not None:
                messages.append(message)


def _size(header: bytes) -> int:
    try:
        size = calc_msg_size(header)
    except KeyError:
        raise NotDBus("neither byte order of D-Bus") from None
    return int(size)


def _parse(raw: bytes) -> Any:
    try:
        return Message.from_buffer(raw)
    except Exception:  # noqa: BLE001 - whatever it is, jeepney does not understand this message
        return None
