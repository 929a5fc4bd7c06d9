"""Words of a command line as QMP arguments, and lines of the monitor."""

from typing import Any

import click
import pytest

from virtagent_host.cli.qmp import _split
from virtagent_host.cli.service import _name_in, _name_of
from virtagent_host.commands import COMMANDS, InvalidArguments
from virtagent_host.frontend.arguments import parse_arguments
from virtagent_host.frontend.vocabulary import described, find_command, parse_line


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (["id=rng0"], {"id": "rng0"}),
        (["size=1048576", "on=true", "none=null"], {"size": 1048576, "on": True, "none": None}),
        (["id='1'", 'name="1"'], {"id": "'1'", "name": "1"}),
        (['list=["a", 1]'], {"list": ["a", 1]}),
        (["file.driver=file", "file.filename=a=b"], {"file": {"driver": "file", "filename": "a=b"}}),
        (["command-line=info status"], {"command-line": "info status"}),
        (["a=NaN", "b="], {"a": "NaN", "b": ""}),
    ],
)
def test_a_value_is_json_if_it_parses_else_a_string(words: list[str], arguments: dict[str, Any]) -> None:
    assert parse_arguments(words) == arguments


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["word"], "word: expected KEY=VALUE"),
        (["=1"], "expected KEY=VALUE"),
        (["a..b=1"], "expected KEY=VALUE"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=1", "a.b=2"], "a has a value already"),
    ],
)
def test_what_is_no_argument_is_named(words: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_arguments(words)


def test_a_word_before_the_qmp_command_is_the_vms_name() -> None:
    assert _split(("query-status",)) == (None, "query-status", {})
    assert _split(("demo", "query-status")) == ("demo", "query-status", {})
    assert _split(("demo", "stop", "a=1")) == ("demo", "stop", {"a": 1})
    assert _split(("stop", "a=1")) == (None, "stop", {"a": 1})


@pytest.mark.parametrize("words", [("a", "b", "c"), ("a=1",), ("a", "b", "c=1", "d")])
def test_a_qmp_command_line_that_means_nothing_is_a_usage_error(words: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        _split(words)


def test_a_vms_name_comes_from_its_socket_or_from_qemus_name_option() -> None:
    from pathlib import Path

    assert _name_of(Path("/run/vm/demo.sock")) == "demo"
    assert _name_in(("qemu-system-x86_64", "-name", "guest=web,debug-threads=on")) == "web"
    assert _name_in(("qemu-system-x86_64", "-name", "web")) == "web"
    with pytest.raises(click.UsageError, match="--name NAME"):
        _name_in(("qemu-system-x86_64", "-m", "1G"))


def test_the_monitor_takes_values_by_position_and_by_name() -> None:
    viewfile = find_command("va_viewfile")
    assert parse_line(viewfile, "/a=b") == {"filepath": "/a=b", "offset": 0, "timeout": 5.0}
    assert parse_line(viewfile, "'/a b' count=4 7")["filepath"] == "/a b"
    assert parse_line(viewfile, "'/a b' count=4 7")["offset"] == 7
    assert parse_line(viewfile, "'/a b' count=4 7")["count"] == 4
    assert parse_line(find_command("va_shutdown"), "halt timeout=2.5") == {
        "shutdown_mode": "halt",
        "timeout": 2.5,
    }


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("va_shutdown", "Parameter 'shutdown_mode' is missing"),
        ("va_shutdown sleep", "does not accept value 'sleep', only: halt, powerdown, reboot"),
        ("va_ping 1 2 3", "too many values; usage: va_ping \\[timeout\\] \\[session\\]"),
        ("va_ping soon", "Invalid parameter type for 'timeout', expected: number"),
        ("va_viewfile 'a", "No closing quotation"),
        ("va_fly", "'help' lists"),
    ],
)
def test_a_line_that_fits_no_command_is_refused(line: str, error: str) -> None:
    word, _, rest = line.partition(" ")
    with pytest.raises(InvalidArguments, match=error):
        parse_line(find_command(word), rest)


def test_the_old_names_are_the_same_commands() -> None:
    for topic in ("ping", "capabilities", "shutdown", "viewfile", "viewdmesg"):
        assert find_command(f"agent_{topic}") is COMMANDS[f"va_{topic}"]


def test_help_for_one_command_shows_its_choices_and_its_example() -> None:
    text = described(COMMANDS["va_shutdown"])
    assert "va_shutdown shutdown_mode [timeout]" in text
    assert "halt|powerdown|reboot" in text
    assert "Example: va_shutdown powerdown" in text
