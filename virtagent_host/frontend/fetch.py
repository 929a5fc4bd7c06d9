"""Files of any size, and the kernel's log, fetched through the bridge.

A message holds 2 MiB at most, so a file comes in parts. Bytes travel as base64: what a file holds need
not be text, and a part may end in the middle of a character.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from virtagent_protocol.errors import RemoteProtocolError

from .client import GRACE, VmClient

#: Bytes asked for at a time: small beside the message limit (2 MiB, base64 adds a third), so that other calls
#: get their turn between parts, and large beside the cost of a round trip.
PART_SIZE = 1 << 18


def file_parts(
    client: VmClient, filepath: str, *, offset: int = 0, count: int | None = None, timeout: float
) -> Iterator[bytes]:
    """Yield the bytes of a guest's file.

    Args:
        client: connected.
        filepath: path in the guest.
        offset: first byte.
        count: how many bytes; None: all that follow.
        timeout: seconds for each part.

    Raises:
        VirtagentError: as `VmClient.execute`.
    """
    left = count
    while left is None or left > 0:
        size = PART_SIZE if left is None else min(PART_SIZE, left)
        window = {"filepath": filepath, "offset": offset, "count": size}
        answer = call(client, "va_viewfile", {**window, "format": "base64"}, timeout)
        data = _content(answer)
        yield data
        # No bytes and no end would be a loop without one.
        if answer.get("eof") or not data:
            return
        offset += len(data)
        left = None if left is None else left - len(data)


def dmesg(client: VmClient, *, timeout: float) -> bytes:
    """Return the end of the guest kernel's log.

    Raises:
        VirtagentError: as `VmClient.execute`.
    """
    return _content(call(client, "va_viewdmesg", {"format": "base64"}, timeout))


def call(client: VmClient, command: str, arguments: dict[str, object], timeout: float) -> Any:
    """Run a `va_*` command that takes a timeout, and give its answer the time to say more than ours would."""
    return client.execute(command, {**arguments, "timeout": timeout}, timeout=timeout + GRACE)


def _content(answer: Any) -> bytes:
    try:
        return base64.b64decode(answer["content"], validate=True)
    except (TypeError, KeyError, ValueError):
        raise RemoteProtocolError("va-host answered without base64 content; is it of this version?") from None
