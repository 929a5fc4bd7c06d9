"""protocol/vectors/ as Python objects."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from virtagent_protocol import messages
from virtagent_protocol.messages import Message
from virtagent_protocol.values import Value

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"


def load(name: str) -> dict[str, Any]:
    """Return one file of vectors."""
    document: dict[str, Any] = json.loads((VECTORS / name).read_text("ascii"))
    return document


def as_bytes(text: str) -> bytes:
    """Return the bytes that a vector's string stands for: every character is one."""
    return text.encode("latin-1")


def as_message(described: dict[str, Any]) -> Message:
    """Return the message that a vector describes."""
    fields = {
        name: as_bytes(value) if name in ("body", "data") else value
        for name, value in described.items()
        if name != "type"
    }
    message: Message = getattr(messages, described["type"])(**fields)
    return message


def as_value(described: Any) -> Value:
    """Return the value that a vector describes."""
    if isinstance(described, list):
        return [as_value(item) for item in described]
    if isinstance(described, dict):
        if "base64" in described:
            return base64.b64decode(described["base64"])
        return {name: as_value(item) for name, item in described["struct"].items()}
    value: Value = described
    return value
