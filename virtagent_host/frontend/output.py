"""What the CLI and the monitor print, and the exit status they end with.

The rules:

1. Data goes to stdout, errors to stderr. One line an error: ``va-host: not ready: …``; with ``--json`` it is
   one JSON object, ``{"error": {"kind": "not ready", "message": "…"}}``, on stderr as well.
2. On a terminal, control characters are made visible, whoever they came from; our own colour is added
   after that. Into a pipe or file goes what the guest sent, unchanged.
3. Colour only on a terminal, and not if ``$NO_COLOR`` is set (no-color.org).
4. The exit status follows from the kind of failure (`errors.EXIT_STATUS`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.text import VisibleDecoder, visible, visible_line

PROGRAM = "va-host"

#: What a shell reports for a program ended by the signal (128 + its number): SIGINT, SIGPIPE.
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141

EXIT_HELP = """\
Exit status: 0 done, 1 the guest or QEMU answered with an error, 2 usage, 3 not there (no such VM,
no service), 4 not ready, 5 forbidden, 6 timed out or broken."""

_GREEN, _YELLOW, _RED, _BOLD = "32", "33", "31", "1"
_COLOUR_OF_STATE = {"ready": _GREEN, "no-port": _RED}


def on_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def put(text: str) -> None:
    """Print a line, or lines, of text to stdout by rule 2."""
    sys.stdout.write((visible(text) if on_terminal() else text) + "\n")


def put_json(document: object, *, indent: int | None = None) -> None:
    """Print one JSON document to stdout, on one line unless *indent* is given."""
    import json

    put(json.dumps(document, indent=indent))


def put_bytes(parts: Iterable[bytes]) -> None:
    """Print a guest's bytes: as they are into a pipe or file, visibly on a terminal."""
    if not on_terminal():
        for part in parts:
            sys.stdout.buffer.write(part)
        return
    decoder = VisibleDecoder()
    for part in parts:
        sys.stdout.write(decoder.decode(part))
    sys.stdout.write(decoder.decode(b"", final=True))


def put_fields(fields: Mapping[str, Any], indent: str = "") -> None:
    """Print a command's result for people: a line a member, the items of a list or struct below it."""
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            put(f"{indent}{name}:")
            put_fields(value, indent + "  ")
        elif isinstance(value, list):
            put(f"{indent}{name}:")
            for item in value:
                put(f"{indent}  {_plain(item)}")
        elif name == "state":
            put_coloured([f"{indent}{name}: ", (str(value), state_colour(str(value)))])
        else:
            put(f"{indent}{name}: {_plain(value)}")


def put_coloured(pieces: Iterable[str | tuple[str, str]]) -> None:
    """Print one line of pieces; those that come with an SGR code are coloured by rule 3."""
    line = ""
    for piece in pieces:
        text, code = (piece, "") if isinstance(piece, str) else piece
        text = visible_line(text) if on_terminal() else text
        line += f"\x1b[{code}m{text}\x1b[0m" if code and _colour(sys.stdout) else text
    sys.stdout.write(line + "\n")


def state_colour(state: str) -> str:
    """Return the SGR code for a link state."""
    return _COLOUR_OF_STATE.get(state, _YELLOW)


def put_error(error: VirtagentError, *, as_json: bool = False) -> None:
    """Print an error to stderr by rule 1. A guest's words in it are made visible in either form."""
    if as_json:
        import json

        sys.stderr.write(json.dumps({"error": {"kind": error.kind.value, "message": str(error)}}) + "\n")
        return
    kind = f"\x1b[{_BOLD};{_RED}m{error.kind.value}\x1b[0m" if _colour(sys.stderr) else error.kind.value
    sys.stderr.write(f"{PROGRAM}: {kind}: {visible_line(str(error))}\n")


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, (dict, list, bool)):
        import json

        return json.dumps(value)
    return str(value)


def _colour(stream: Any) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
