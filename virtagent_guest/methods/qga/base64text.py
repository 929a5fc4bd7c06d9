"""Base64 as the arguments of commands have it, read as strictly as qemu-ga does."""

from __future__ import annotations

import base64
import binascii
import re

from .command import QgaError

_INVALID = re.compile(r"[^A-Za-z0-9+/=\n]")


def decode(text: str) -> bytes:
    """Return the bytes.

    Raises:
        QgaError: it is not base64, is cut short, or goes on behind its padding.
    """
    if _INVALID.search(text):
        raise QgaError("Base64 data contains invalid characters")
    if "=" in text.rstrip("=\n"):
        # Python would leave out the rest.
        raise QgaError(
            "Base64 data goes on behind its padding: send the pieces one by one, or encode the whole"
        )
    try:
        return base64.b64decode(text)
    except binascii.Error as error:
        # qemu-ga writes or runs what can be decoded. Half of a file that looks whole helps nobody.
        raise QgaError(f"Base64 data is cut short: {error}") from None


def encode(data: bytes | bytearray) -> str:
    """Return the text, in one line."""
    return base64.b64encode(data).decode("ascii")


def fitting(length: int) -> int:
    """Return how many bytes can be written as base64 in so many characters."""
    return length // 4 * 3
