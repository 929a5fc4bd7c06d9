"""What the commands for programs of the guest share: how they fail, and options that take seconds."""

from __future__ import annotations

import argparse
import sys

from virtagent_protocol.errors import EXIT_STATUS, VirtagentError
from virtagent_protocol.text import visible_line


def tell(parser: argparse.ArgumentParser, error: VirtagentError) -> int:
    """Tell an error on stderr, its kind first, and return the exit status for it."""
    print(f"{parser.prog}: {error.kind.value}: {visible_line(str(error))}", file=sys.stderr)
    return EXIT_STATUS[error.kind]


def seconds(text: str) -> float:
    """Return a time that an option gives. Raises ValueError, of which argparse makes an error of usage."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value
