"""What the sender of a tree stream hears: what the receiver has, when to begin, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RemoteProtocolError
from .entries import from_json
from .records import Kind, Record, RecordReader

#: What a receiver may tell that it has: entries, and bytes of their paths.
KEPT_MAX, KEPT_BYTES_MAX = 100_000, 8 * 1024 * 1024


@dataclass(frozen=True)
class Result:
    """What the receiver has made of it: `fatal` is what it could not go on for, or nothing."""

    entries: int
    errors: list[tuple[bytes, str]]
    failed: int
    mismatches: int
    fatal: str

    @classmethod
    def decode(cls, record: Record) -> Result:
        """Read a RESULT record. Raises RemoteProtocolError."""
        errors = []
        for error in record.get("errors", list, []):
            if not isinstance(error, list) or len(error) != 2 or not isinstance(error[1], str):
                raise RemoteProtocolError("an error in a result must be a path and a reason")
            errors.append((from_json(error[0]), error[1]))
        return cls(
            record.get("entries", int),
            errors,
            record.get("failed", int),
            record.get("mismatches", int),
            record.get("fatal", str, ""),
        )


class Listener:
    """What the sender hears of the receiver.

    Attributes:
        digests: that the receiver takes, once it has said GO.
        result: once it has told.
        complete: path → size and time of what it has.
        parts: path → size of what it has a part of.
    """

    def __init__(self) -> None:
        self.digests: list[str] | None = None
        self.result: Result | None = None
        self.complete: dict[bytes, tuple[int, int]] = {}
        self.parts: dict[bytes, int] = {}
        self._reader = RecordReader()
        self._bytes = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of the receiver's half. Raises RemoteProtocolError."""
        for record in self._reader.feed(data):
            if self.result is not None:
                raise RemoteProtocolError("the receiver goes on after its result")
            if record.kind is Kind.KEPT and self.digests is None:
                self._keep(record)
            elif record.kind is Kind.GO and self.digests is None:
                self.digests = [name for name in record.get("digests", list) if isinstance(name, str)]
            elif record.kind is Kind.RESULT:
                self.result = Result.decode(record)
            else:
                raise RemoteProtocolError(f"the receiver sent a record of kind {record.kind.name}")

    def _keep(self, record: Record) -> None:
        path, size = from_json(record.fields.get("path")), record.get("size", int)
        self._bytes += len(path)
        if len(self.complete) + len(self.parts) >= KEPT_MAX or self._bytes > KEPT_BYTES_MAX:
            raise RemoteProtocolError("the receiver tells of more than it may")
        if record.get("part", bool, False):
            self.parts[path] = size
        else:
            self.complete[path] = (size, record.get("mtime_ns", int))
