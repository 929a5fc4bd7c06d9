"""What guest.toml says of the clipboard. Read before trio is imported."""

from __future__ import annotations

from dataclasses import dataclass

#: The values of ``clipboard`` in [session] → what they let the host do.
DIRECTIONS: dict[str, frozenset[str]] = {
    "off": frozenset(),
    "to-guest": frozenset({"to-guest"}),
    "from-guest": frozenset({"from-guest"}),
    "both": frozenset({"to-guest", "from-guest"}),
}
#: What the agent of a session offers for it; here, so that policies know the names (`methods.all_names`).
METHODS = ("va.clipboard_types", "va.clipboard_read", "va.clipboard_write", "va.clipboard_watch")
#: Bytes of all types of one content. As on the host: an uncompressed picture of 8K fits.
SIZE_MAX = 128 * 1024 * 1024


@dataclass(frozen=True)
class ClipboardSettings:
    """Which way contents may go, and how much of them.

    Attributes:
        clipboard: one of `DIRECTIONS`.
        size_max: bytes of all types of one content.
    """

    clipboard: str = "off"
    size_max: int = SIZE_MAX

    def lets(self, direction: str) -> bool:
        """Whether contents may go this way: ``to-guest`` or ``from-guest``."""
        return direction in DIRECTIONS[self.clipboard]
