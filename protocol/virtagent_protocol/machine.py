"""What a hello says of the machine it comes from."""

from __future__ import annotations

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return the id that the kernel drew at boot (random(4)), or "" where there is none to read."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
