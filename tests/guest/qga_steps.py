"""What the cases of `qga_cases` are made of: steps, and the place where they have their files."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

#: Where the cases have their files.
ROOM = "/root/room"

#: What they need in the guest, made once.
PREPARE = f"""
mkdir {ROOM}
mkfifo {ROOM}/fifo
useradd --create-home alice
"""


@dataclass(frozen=True)
class Saved:
    """Stands among the arguments for what an earlier step returned, or for a member of it."""

    step: int
    member: str = ""


@dataclass(frozen=True)
class Ask:
    """Give a command. *until*: give it again until this member of what it returns is true."""

    command: str
    arguments: dict[str, Any] = field(default_factory=dict)
    until: str = ""


@dataclass(frozen=True)
class Shell:
    """Run a shell command in the guest."""

    command: str


@dataclass(frozen=True)
class Raw:
    """Send bytes."""

    data: bytes


Step = Ask | Shell | Raw


@dataclass(frozen=True)
class Case:
    """Steps about one command. The name tells them from others about it."""

    command: str
    name: str
    steps: tuple[Step, ...]


def b64(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode()


def case(command: str, name: str, *steps: Step) -> Case:
    """Return a case."""
    return Case(command, name, steps)
