"""The host's end of va.exec: what it makes of a guest's word, and of a command line."""

from __future__ import annotations

import click
import pytest

from virtagent_host.cli.exec import _texts, exec_
from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.outcome import read_outcome
from virtagent_protocol.values import Struct


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ({"code": 3}, {"code": 3}),
        ({"signal": 9, "core": True}, {"signal": 9, "core": True}),
        ({"signal": 15, "core": False, "deadline": True}, {"signal": 15, "core": False, "deadline": True}),
        ({"code": 0, "deadline": False, "missed": 0, "new": "x"}, {"code": 0}),
        ({"code": 0, "missed": 5}, {"code": 0, "missed": 5}),
    ],
)
def test_an_outcome_is_read(status: Struct, outcome: dict[str, object]) -> None:
    assert read_outcome(status) == outcome


@pytest.mark.parametrize(
    "status",
    [{}, {"code": "0"}, {"code": 256}, {"code": -1}, {"signal": 128}, {"signal": True}, {"code": True}],
)
def test_an_outcome_that_no_process_has_is_the_guests_mistake(status: Struct) -> None:
    with pytest.raises(RemoteProtocolError):
        read_outcome(status)


@pytest.mark.parametrize(
    ("line", "name", "program"),
    [
        ("demo -- ls -l", "demo", ["ls", "-l"]),
        ("demo ls -l -t", "demo", ["ls", "-l", "-t"]),
        ("-- ls", None, ["ls"]),
        ("-t demo -C /tmp -- ls -- x", "demo", ["ls", "--", "x"]),
    ],
)
def test_what_follows_the_name_is_the_programs(line: str, name: str | None, program: list[str]) -> None:
    context = exec_.make_context("exec", line.split())
    assert context.params["words"] == (name, program)


@pytest.mark.parametrize("line", ["", "demo", "demo --", "--", "a b -- c"])
def test_a_command_line_without_a_program_is_a_usage_error(line: str) -> None:
    with pytest.raises(click.UsageError):
        exec_.make_context("exec", line.split())


def test_words_that_are_not_utf8_make_all_of_them_base64() -> None:
    assert _texts(["a", "ä"], "/x", {"A": "b"}) == {"argv": ["a", "ä"], "cwd": "/x", "env": {"A": "b"}}
    assert _texts(["a", "\udcff"], None, {"A": "b"}) == {
        "argv": ["YQ==", "/w=="],
        "cwd": None,
        "env": {"A": "Yg=="},
        "encoding": "base64",
    }
