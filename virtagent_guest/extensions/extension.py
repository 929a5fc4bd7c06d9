"""What an extension is, and what is said of a file that is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from virtagent_protocol.signature import ANY, HELP_MAX, LINE_MAX, Field, Signature
from virtagent_protocol.text import visible

#: Names of parameters that are arguments of every command of the bridge, or may be.
RESERVED = frozenset({"timeout", "session", "deadline"})

#: How a type may be written, in the words of JSON, of Python and of XML-RPC → its name in a signature.
TYPE_WORDS = {
    **dict.fromkeys(("string", "str"), "string"),
    **dict.fromkeys(("int", "integer"), "int"),
    **dict.fromkeys(("number", "double", "float"), "double"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "list"), "array"),
    **dict.fromkeys(("object", "struct", "dict"), "struct"),
    **dict.fromkeys(("any", "Any"), ANY),
}


class Kind(Enum):
    """How an extension is run."""

    #: As a program.
    EXECUTABLE = "executable"
    #: As a function, in a Python of its own.
    PYTHON = "python"


class Unusable(Exception):
    """A file is no extension.

    Args:
        text: why, and what to do.
        line: of the file, if one is to blame.
    """

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True)
class Problem:
    """A file that is no extension, or a directory that is not read."""

    path: str
    text: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}:{'' if self.line is None else f'{self.line}:'} {self.text}"


@dataclass(frozen=True)
class Extension:
    """One method.

    Attributes:
        kind: how it is run.
        path: of the file.
        signature: what it takes and returns.
        help: what it does, in words; its first line is a summary.
        plain: whether what it writes is the result as it is, text, rather than JSON.
    """

    kind: Kind
    path: str
    signature: Signature
    help: str
    plain: bool = False

    @property
    def name(self) -> str:
        """The name of its method."""
        return self.signature.method

    @property
    def text(self) -> str:
        """What `system.methodHelp` says of it: the signature, and the help."""
        return visible(f"{self.signature}\n\n{self.help}".rstrip())[:HELP_MAX]


def make_field(name: str, type_word: str, default: tuple[Any] | None, line: int) -> Field:
    """Return a parameter as a file declares it.

    Args:
        name: its name.
        type_word: of `TYPE_WORDS`.
        default: None, or a tuple that holds it.
        line: where it is declared.

    Raises:
        Unusable: there is no such type, or the name is the bridge's.
    """
    if name in RESERVED:
        raise Unusable(f"parameter '{name}' must have another name: every command of the bridge has it", line)
    if type_word not in TYPE_WORDS:
        raise Unusable(f"there is no type '{type_word}', only {', '.join(sorted(TYPE_WORDS))}", line)
    type_ = TYPE_WORDS[type_word]
    if default is None:
        return Field(name, type_)
    value = default[0]
    if type_ == "double" and type(value) is int:
        value = float(value)
    return Field(name, type_, True, value)


def check_size(signature: Signature, line: int) -> None:
    """Raise `Unusable` if a signature is longer than those who read it take it."""
    if len(str(signature)) > LINE_MAX:
        raise Unusable(f"names and defaults have more than {LINE_MAX} characters", line)


def json_equal(value: object) -> bool:
    """Whether JSON carries a value and gives it back as it was."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
