"""`va-host on`: a command of the host is run for an event.

The rules:

1. The command is a program and its arguments, as the user of va-host wrote them. No shell sees them, and
   nothing of an event is ever put among them: it comes in environment variables and, whole, as JSON on stdin.
2. In variables, control characters are made visible: they end in logs and on terminals. The JSON is exact.
3. Commands run one at a time, in the order of the events. What waits meanwhile is bounded (`feed`).
4. Where to go on the next time is written to a file when a command has ended (`Positions`): one that was cut
   off by our own end is run again for the same event.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from virtagent_protocol.errors import LinkBroken, NotThere
from virtagent_protocol.text import visible

from ..events import GUEST_EVENT
from .feed import Event

#: What becomes part of a variable's name.
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
#: Seconds for a command that was asked to end (SIGTERM) to do so.
GRACE = 5.0


def name_of(event: Event) -> str:
    """Return what an event is called: the guest's name for it, else QEMU's or va-host's."""
    name = event["data"]["event"] if event["event"] == GUEST_EVENT else event["event"]
    return str(name)


def matches(event: Event, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns, as of a shell, fits the event; ``VA_GUEST_EVENT`` fits all of guests."""
    names = {name_of(event), str(event["event"])}
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def environment(vm: str, event: Event) -> dict[str, str]:
    """Return the variables that tell a command of an event."""
    guests = event["event"] == GUEST_EVENT
    facts: dict[str, Any] = event.get("data", {})
    data: dict[str, Any] = facts["data"] if guests else facts
    told: dict[str, Any] = {
        "NAME": name_of(event),
        "VM": vm,
        "DATA": json.dumps(data),
        "SOURCE": "guest" if guests else "host",
    }
    if guests:
        told |= {key.upper(): facts[key] for key in ("time", "log", "sequence", "position")}
        told |= {key.upper(): value for key, value in facts.get("caller", {}).items()}
    for key, value in data.items():
        if _KEY.fullmatch(key) and isinstance(value, (str, int, float)):
            told[f"DATA_{key.upper()}"] = json.dumps(value) if isinstance(value, bool) else value
    return {f"VA_EVENT_{key}": visible(str(value)) for key, value in told.items()}


def run(command: Sequence[str], vm: str, event: Event, timeout: float | None = None) -> str:
    """Run the command for an event; return how it failed, or "".

    Args:
        command: program and arguments.
        vm: where the event is from.
        event: as on the bridge.
        timeout: seconds after which the command is ended.

    Raises:
        NotThere: there is no such program.
    """
    # Variables of a va-host that was itself started for an event are not this event's.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VA_EVENT_")}
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**environ, **environment(vm, event)})
    except OSError as error:
        raise NotThere(f"'{command[0]}' cannot be run: {error.strerror}") from None
    text = json.dumps({"vm": vm, **event}).encode() + b"\n"
    try:
        process.communicate(text, timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return f"was not done within {timeout:g} s"
    except BaseException:
        process.terminate()
        raise
    if process.returncode < 0:
        return f"was ended by signal {-process.returncode}"
    return f"ended with status {process.returncode}" if process.returncode else ""


class Positions:
    """A file that says up to which position the events of each VM were handled.

    Args:
        path: of the file, which need not exist; None: there is none.

    Raises:
        LinkBroken: it cannot be read, or is no such file.

    Attributes:
        known: VM → position.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.known: dict[str, int] = {}
        if path is None:
            return
        try:
            self.known = json.loads(path.read_text())
            if not isinstance(self.known, dict) or not all(type(at) is int for at in self.known.values()):
                raise ValueError("it does not hold positions")
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise LinkBroken(f"{path} cannot be read, remove it to begin anew: {error}") from None

    def put(self, vm: str, position: int) -> None:
        """Write that the events of a VM were handled up to this position. Raises LinkBroken."""
        self.known[vm] = position
        if self._path is None:
            return
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            temporary.write_text(json.dumps(self.known) + "\n")
            temporary.rename(self._path)
        except OSError as error:
            raise LinkBroken(f"{self._path} cannot be written: {error.strerror}") from None
