"""What may differ between the answers of QEMU's guest agent and ours, and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.guest.qga_steps import Case


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


#: Stands where there is no such member.
ABSENT = _Absent()


@dataclass(frozen=True)
class Changing:
    """A value that changes by itself from one question to the next.

    Attributes:
        command: whose answer; a pattern, as `path`.
        path: where in the answer.
        tolerance: by how much it may differ; None: by any amount.
    """

    command: str
    path: str
    tolerance: int | None = None

    def fits(self, command: str, path: str, theirs: Any, ours: Any) -> bool:
        """Whether this is such a value, of the same type and near enough."""
        if not (fnmatchcase(command, self.command) and fnmatchcase(path, f"[0-9]*.{self.path}")):
            return False
        if type(theirs) is not type(ours):
            return False
        return self.tolerance is None or abs(theirs - ours) <= self.tolerance


#: Nanoseconds between two questions on a machine that is busy with something else.
_A_WHILE = 120 * 10**9

CHANGING = (
    Changing("guest-[gs]et-time", "return", _A_WHILE),
    Changing("guest-exec*", "return.pid"),
    Changing("guest-get-cpustats", "return.*"),
    Changing("guest-get-diskstats", "return.*.stats.*"),
    Changing("guest-get-fsinfo", "return.*.used-bytes", 2**24),
    Changing("guest-fstrim", "return.paths.*.trimmed"),
    Changing("guest-network-get-interfaces", "return.*.statistics.*"),
)


@dataclass(frozen=True)
class Explanation:
    """Why something differs.

    Attributes:
        text: the reason, for docs/qga.md; several may have the same.
        command, case, path: of what; patterns.
        holds: what has to be so, given theirs and ours.
    """

    text: str
    command: str
    case: str = "*"
    path: str = "*"
    holds: Callable[[Any, Any], bool] = lambda theirs, ours: True

    def fits(self, case: Case, path: str, theirs: Any, ours: Any) -> bool:
        """Whether it explains a difference."""
        return (
            fnmatchcase(case.command, self.command)
            and fnmatchcase(case.name, self.case)
            and fnmatchcase(path, f"[0-9]*.{self.path}")
            and self.holds(theirs, ours)
        )


def _texts(holds: Callable[[str, str], bool]) -> Callable[[Any, Any], bool]:
    """Return what holds for two texts, and for nothing else."""
    return lambda theirs, ours: isinstance(theirs, str) and isinstance(ours, str) and holds(theirs, ours)


def _new_handle(theirs: Any, ours: Any) -> bool:
    return type(theirs) is type(ours) is int and theirs < ours < 2**31


def _absent_there(theirs: Any, ours: Any) -> bool:
    return theirs is ABSENT


@_texts
def _numbers_apart(theirs: str, ours: str) -> bool:
    return re.sub(r"\d+", "N", theirs) == re.sub(r"\d+", "N", ours)


@_texts
def _mode_apart(theirs: str, ours: str) -> bool:
    return theirs.replace(" 666 ", " 644 ", 1) == ours


def _refused_here(theirs: Any, ours: Any) -> bool:
    return (theirs is ABSENT) != (ours is ABSENT)


@_texts
def _longer(theirs: str, ours: str) -> bool:
    return ours.startswith(f"{theirs}: ")


@_texts
def _line_feeds_apart(theirs: str, ours: str) -> bool:
    return _no_empty_lines(theirs) == _no_empty_lines(ours)


def _no_empty_lines(text: str) -> list[str]:
    return [line for line in text.replace("<status", "\n<status").split("\n") if line]


_EXEC = "guest-exec*"
_HANDLES = (
    "Handles begin at a random number of 30 bits instead of a counter kept in a file: one from before a "
    "restart is never somebody else's file."
)
_MODE = "A new file may be written by root alone (mode 0644), and not by everybody in the guest (0666)."
_NEWER_WORDS = "The words of the present release; 7.2 has others."
_REFUSED = (
    "An error tells what is wrong with the base64. qemu-ga takes what it can decode, and goes on with half "
    "a file."
)
_KEYS_ORDER = "In the order of the file; qemu-ga tells the last one first."
_KEYS_FILE = "The file ends with a line feed, as editors and `>>` expect."
_LINK = (
    "No symbolic link is followed: a user could point it at root's files, and have them shown or overwritten."
)
_NO_KEY = "A key with a carriage return is refused; qemu-ga writes it to the file."
_BLANK = "A blank key is passed over; qemu-ga writes a blank line."
_USER = "Says that there is no such user, where qemu-ga says “Success”."
_FAILED = "Tells also what chpasswd said, as the present release does."

EXPLAINED = (
    Explanation("Names itself.", "*", path="return.agent", holds=_absent_there),
    Explanation(
        "The version is that of the release whose commands these are: clients look there for what there is.",
        "guest-[if]*",
        path="return.version",
    ),
    Explanation(
        "Lists also the commands that came with later releases.",
        "*",
        path="return.supported_commands.guest-*",
        holds=_absent_there,
    ),
    Explanation(
        "A negative time is an invalid time; 7.2 asks the kernel.", "guest-set-time", "to -1", "error.desc"
    ),
    Explanation(_HANDLES, "guest-file-*", path="return", holds=_new_handle),
    Explanation(_HANDLES, "guest-file-*", path="error.desc", holds=_numbers_apart),
    Explanation(_MODE, "guest-file-*", path="", holds=_mode_apart),
    Explanation(
        "What a FIFO holds is given out, though it is less than was asked for; with qemu-ga it is lost.",
        "guest-file-read",
        "a FIFO with less data",
        holds=_refused_here,
    ),
    Explanation(_REFUSED, "guest-file-write", "base64 *", holds=_refused_here),
    Explanation(
        _REFUSED,
        "guest-file-write",
        "base64 'eA==eA=='",
        "",
        _texts(lambda theirs, ours: ours == "''<status 0>"),
    ),
    Explanation(_NEWER_WORDS, _EXEC, path="error.desc", holds=_texts(lambda theirs, ours: ours in theirs)),
    Explanation(
        _NEWER_WORDS,
        _EXEC,
        path="error.desc",
        holds=_texts(lambda theirs, ours: theirs == "Invalid parameter 'pid'" and ours[-5:] == "exist"),
    ),
    Explanation(
        "Takes the words that came with 8.1, too.",
        "guest-exec",
        "capture-output = *",
        "error.desc",
    ),
    Explanation(
        "Text with a NUL is refused. qemu-ga hands on the bytes C0 80 instead, which nobody means.",
        "guest-exec",
        "a NUL",
        holds=_refused_here,
    ),
    Explanation(
        "How much more room there is for root alone, came with 9.1.",
        "guest-get-fsinfo",
        path="return.*.total-bytes-privileged",
        holds=_absent_there,
    ),
    Explanation(
        "Says why.", "*", path="error.desc", holds=_texts(lambda theirs, ours: "on Windows only" in ours)
    ),
    Explanation(
        _NEWER_WORDS,
        "guest-set-vcpus",
        path="error.desc",
        holds=_texts(
            lambda theirs, ours: theirs.replace('open("', "Could not open '").replace('")', "'") == ours
        ),
    ),
    Explanation(
        "A negative number where the schema has none is refused; 7.2 takes it for 2⁶⁴ less.",
        "guest-set-memory-blocks",
        holds=_refused_here,
    ),
    Explanation(
        "Single quotes are taken off, too, as os-release(5) has it.",
        "guest-get-osinfo",
        "quotes",
        "return.version",
    ),
    Explanation(
        "Tells what has failed.",
        "guest-suspend-hybrid",
        path="error.desc",
        holds=lambda theirs, ours: theirs == "unknown guest suspend mode",
    ),
    Explanation(
        "A negative minimum is refused at once; qemu-ga has the kernel refuse it for each file system.",
        "guest-fstrim",
        "a negative minimum",
        holds=_refused_here,
    ),
    Explanation(_FAILED, "guest-set-user-password", path="error.desc", holds=_longer),
    Explanation(
        "The reason without the file's name a second time.",
        "guest-ssh-get-authorized-keys",
        "no file",
        "error.desc",
    ),
    Explanation(
        _KEYS_ORDER,
        "guest-ssh-*",
        path="return.keys.*",
        holds=lambda theirs, ours: ABSENT not in (theirs, ours),
    ),
    Explanation(_KEYS_FILE, "guest-ssh-*", path="", holds=_line_feeds_apart),
    Explanation(_LINK, "guest-ssh-get-authorized-keys", "a link", holds=_refused_here),
    Explanation(_NO_KEY, "guest-ssh-*", "'a\\rb'", holds=_refused_here),
    Explanation(
        _NO_KEY, "guest-ssh-*", "'a\\rb'", "", holds=_texts(lambda theirs, ours: ours == "<status 1>")
    ),
    Explanation(
        _BLANK,
        "guest-ssh-*",
        "'  '",
        "",
        holds=_texts(lambda theirs, ours: theirs.replace("\n  <", "\n<") == ours),
    ),
    Explanation(_USER, "guest-ssh-*", "no such user", "error.desc"),
    Explanation(
        "By poweroff, halt and reboot if they are there, as the present release; 7.2 uses shutdown(8).",
        "guest-shutdown",
        path="",
    ),
)


#: Member → its type, and whether it is always there. For commands that the guest's qemu-ga does not have yet.
Schema = dict[str, tuple[type, bool]]

SCHEMAS: dict[str, Schema] = {
    "guest-get-load": {f"load{minutes}m": (float, True) for minutes in (1, 5, 15)},
    "guest-network-get-route": {
        **dict.fromkeys(("iface", "destination"), (str, True)),
        **dict.fromkeys(("metric", "version"), (int, True)),
        **dict.fromkeys(
            ("gateway", "mask", "desprefixlen", "source", "srcprefixlen", "nexthop"), (str, False)
        ),
        **dict.fromkeys(("irtt", "flags", "refcnt", "use", "window", "mtu"), (int, False)),
    },
}


def against_schema(command: str, answer: Any) -> list[str]:
    """Return what is wrong with an answer, by the schema."""
    result = answer.get("return")
    objects = result if isinstance(result, list) else [result]
    wrong = [] if objects else ["nothing was told"]
    for told in objects:
        if not isinstance(told, dict):
            return [f"{told!r} is no object"]
        schema = SCHEMAS[command]
        wrong += [f"{name} is missing" for name, (_, always) in schema.items() if always and name not in told]
        wrong += [f"{name} is not in the schema" for name in told.keys() - schema.keys()]
        for name in told.keys() & schema.keys():
            if type(told[name]) is not schema[name][0]:
                wrong.append(f"{name} is {told[name]!r}")
    return wrong
