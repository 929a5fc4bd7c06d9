"""The clipboard of a session agent: its configuration, and what it refuses without a display."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.integration.hostilelab import PYTHON_PATH
from virtagent_guest.config import Config, ConfigError, dump, load
from virtagent_guest.methods import all_names
from virtagent_guest.session.clipboard import CLIPBOARD, registry
from virtagent_guest.session.clipboard_settings import METHODS, ClipboardSettings
from virtagent_guest.session.display import parse
from virtagent_protocol.errors import FailureKind, Fault
from virtagent_protocol.registry import Call

CALL = Call("va.clipboard", "tag")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLIPBOARD, "settings", ClipboardSettings())


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "guest.toml"
    path.write_text(text)
    return str(path)


def test_it_is_off_unless_the_configuration_says_otherwise(tmp_path: Path) -> None:
    assert not any(Config().clipboard.lets(way) for way in ("to-guest", "from-guest"))
    config = load(written(tmp_path, '[session]\nclipboard = "to-guest"\nclipboard-max-size = 7\n'))
    assert config.clipboard == ClipboardSettings("to-guest", 7)
    assert config.clipboard.lets("to-guest")
    assert not config.clipboard.lets("from-guest")
    assert load(written(tmp_path, dump(config))) == config


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('clipboard = "on"', "must be one of off, to-guest, from-guest, both"),
        ("clipboard-max-size = 0", "must be at least 1"),
        ("clipboard = true", "must be a string"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(written(tmp_path, f"[session]\n{line}\n"))


def test_policies_know_the_methods() -> None:
    assert sorted(METHODS) == registry.names()
    assert set(METHODS) <= set(all_names())


@pytest.mark.parametrize("name", METHODS)
async def test_what_is_off_is_forbidden_before_anything_else_with_the_setting_that_says_so(name: str) -> None:
    method = registry.get(name)
    params: list[dict[str, int]] = [{}] if method.parameters else []
    with pytest.raises(Fault, match=r"set clipboard = .* in \[session\] of its guest.toml") as caught:
        await method.handler(CALL, *params)
    assert caught.value.kind is FailureKind.FORBIDDEN


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stream": "1"},
        {"stream": 1, "patterns": []},
        {"stream": 1, "patterns": ["x"]},
        {"stream": 1, "max_size": "1"},
    ],
)
async def test_requests_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    CLIPBOARD.settings = ClipboardSettings("both")
    with pytest.raises(Fault):
        await registry.get("va.clipboard_read").handler(CALL, options)


async def test_a_session_without_a_display_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    CLIPBOARD.settings = ClipboardSettings("both")
    async with trio.open_nursery() as nursery:
        await nursery.start(CLIPBOARD.run)
        with pytest.raises(Fault, match="neither WAYLAND_DISPLAY nor DISPLAY is set") as caught:
            await registry.get("va.clipboard_types").handler(CALL)
        nursery.cancel_scope.cancel()
    assert caught.value.kind is FailureKind.NOT_THERE


@pytest.mark.parametrize(
    "module", ["virtagent_guest.service", "virtagent_host.cli.guest", "virtagent_host.commands"]
)
def test_nothing_of_it_is_loaded_where_it_is_not_used(module: str) -> None:
    heavy = ("Xlib", "virtagent_protocol.clipboard")
    script = f"import sys, {module}; print(*(name for name in sys.modules if name.startswith({heavy})))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": PYTHON_PATH}, capture_output=True, check=True
    )
    assert done.stdout.split() == []


def test_only_the_variables_of_a_display_are_taken_over_from_the_users_manager() -> None:
    output = (
        b"PATH=/usr/bin\nDISPLAY=:0\nWAYLAND_DISPLAY=\nXAUTHORITY=$'/tmp/a\\nb'\nLD_PRELOAD=x\n\xff=\xff\n"
    )
    assert parse(output) == {"DISPLAY": ":0"}
