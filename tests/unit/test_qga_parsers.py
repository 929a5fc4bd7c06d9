"""What the guest agent's commands read from the system, and the arithmetic of what they return."""

from __future__ import annotations

import base64
import struct

import pytest

from virtagent_guest.methods.qga import base64text
from virtagent_guest.methods.qga.capture import STREAM_MAX, Budget, Captured
from virtagent_guest.methods.qga.command import QgaError
from virtagent_guest.methods.qga.execute import _shares as shares
from virtagent_guest.methods.qga.osinfo import parse
from virtagent_guest.methods.qga.users import Login, logins

# --- utmp --------------------------------------------------------------------------------------------


def record(kind: int, user: bytes, seconds: int, microseconds: int, *, wide: bool = False) -> bytes:
    """Return a record of utmp, put together field by field as <bits/utmp.h> has them."""
    head = struct.pack("=h2xi32s4s32s256shh", kind, 4711, b"pts/0", b"ts/0", user, b"10.0.2.2", 0, 0)
    if wide:
        return head + struct.pack("=qqq16s20s4x", 1, seconds, microseconds, b"", b"")
    return head + struct.pack("=iii16s20s", 1, seconds, microseconds, b"", b"")


@pytest.mark.parametrize(("machine", "wide", "size"), [("x86_64", False, 384), ("aarch64", True, 400)])
def test_logins_are_found_among_other_records(machine: str, wide: bool, size: int) -> None:
    data = b"".join(
        [
            record(2, b"reboot", 1, 0, wide=wide),
            record(7, b"alice", 1700000000, 250000, wide=wide),
            record(8, b"gone", 1700000001, 0, wide=wide),
            record(7, b"a" * 32, 1700000002, 0, wide=wide),
        ]
    )
    assert len(data) == 4 * size
    found = [Login("alice", 1700000000.25), Login("a" * 32, 1700000002.0)]
    assert list(logins(data, machine)) == found
    assert list(logins(data[:-1], machine)) == found[:1]
    assert list(logins(b"", machine)) == []


def test_a_name_that_is_no_text_does_no_harm() -> None:
    (login,) = logins(record(7, b"\xff\x1b", 0, 0), "x86_64")
    assert login.user == "\ufffd\x1b"


# --- os-release --------------------------------------------------------------------------------------

DEBIAN = """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
ID=debian
HOME_URL="https://www.debian.org/"
"""


def test_os_release_is_read_as_a_shell_would() -> None:
    assert parse(DEBIAN)["PRETTY_NAME"] == "Debian GNU/Linux 12 (bookworm)"
    assert parse(DEBIAN)["ID"] == "debian"
    odd = "\n".join(
        [
            "# comment",
            "",
            "A='single $x \"q\"'",
            r'B="esc \" \$ \\ \` \n"',
            "C=word rest",
            "D=",
            "export E=1",
            "F=a;b",
            '  G="trailing" # no',
            'H="not closed',
            "I-J=no",
        ]
    )
    assert parse(odd) == {
        "A": 'single $x "q"',
        "B": r'esc " $ \ ` \n',
        "C": "word",
        "D": "",
        "F": "a",
        "G": "trailing",
        "H": "not closed",
    }


# --- base64 ------------------------------------------------------------------------------------------


def test_base64_is_read_strictly() -> None:
    assert base64text.decode("aGFs\nbG8=") == b"hallo"
    assert base64text.decode("") == b""
    for text, said in (("aGFs bG8=", "invalid characters"), ("aGFsbG8", "cut short"), ("ä", "invalid")):
        with pytest.raises(QgaError, match=said):
            base64text.decode(text)


@pytest.mark.parametrize("length", [0, 3, 4, 5, 1000])
def test_what_fits_is_as_much_as_can_be(length: int) -> None:
    fitting = base64text.fitting(length)
    assert len(base64.b64encode(bytes(fitting))) <= length < len(base64.b64encode(bytes(fitting + 1)))


# --- captured output ---------------------------------------------------------------------------------


def test_a_stream_keeps_its_first_16_mib() -> None:
    budget = Budget(3 * STREAM_MAX)
    stream = Captured(budget)
    stream.add(b"x" * STREAM_MAX)
    assert not stream.truncated
    stream.add(b"y")
    assert stream.truncated
    assert stream.take() == b"x" * STREAM_MAX
    assert budget.left == 3 * STREAM_MAX


def test_all_streams_together_keep_what_the_budget_allows() -> None:
    budget = Budget(10)
    first, second = Captured(budget), Captured(budget)
    first.add(b"123456")
    second.add(b"abcdef")
    assert (second.truncated, budget.left) == (True, 0)
    assert first.take() == b"123456"
    second.add(b"g")
    assert second.take() == b"abcdg"
    assert (first.take(), budget.left) == (b"", 10)


@pytest.mark.parametrize(
    ("out", "err", "room", "given"),
    [
        (10, 10, None, (10, 10)),
        (10, 10, 100, (10, 10)),
        (100, 10, 50, (40, 10)),
        (10, 100, 50, (10, 40)),
        (100, 100, 50, (25, 25)),
        (100, 0, 50, (50, 0)),
    ],
)
def test_two_outputs_share_what_a_reply_holds(out: int, err: int, room: int | None, given: object) -> None:
    assert shares(out, err, room) == given
