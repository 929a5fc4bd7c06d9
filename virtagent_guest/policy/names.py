"""Names and patterns of a policy.

A method has one name, and its users have two: ``guest-file-open`` in QEMU's schema is ``guest.file_open``
here. Patterns are those of `virtagent_protocol.glob`.
"""

from __future__ import annotations

from virtagent_protocol.glob import Glob as Glob


def canonical(name: str) -> str:
    """Return a method's name, or a pattern of them, in the one form in which they are compared."""
    if name.startswith("guest-"):
        return "guest." + name[len("guest-") :].replace("-", "_")
    return name


def qapi_spelling(name: str) -> str:
    """Return a method's name as QEMU's schema has it, if it is one of those."""
    return name.replace(".", "-").replace("_", "-") if name.startswith("guest.") else name
