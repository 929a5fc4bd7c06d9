"""What the command line tells the service."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from virtagent_host.cli import main
from virtagent_host.options import AttachOptions, LaunchOptions
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol.errors import Forbidden
from virtagent_protocol.limits import Settings


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What attach_main and launch_main of a service that does nothing are given."""
    told: list[Any] = []
    for name in ("attach", "launch"):
        module = ModuleType(f"virtagent_host.service.{name}")
        setattr(module, f"{name}_main", told.append)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("VIRTAGENT_RUNTIME_DIR", "/run/test")
    return told


def test_attach_names_the_vm_after_its_socket(told: list[Any]) -> None:
    assert main(["-v", "attach", "--qmp", "/run/vm/demo.sock", "--send-max", "3"]) == 0
    assert told == [
        AttachOptions(
            name="demo",
            runtime=RuntimeDir(Path("/run/test")),
            qmp=Path("/run/vm/demo.sock"),
            settings=Settings(send_max=3),
            verbose=1,
        )
    ]


def test_attach_takes_a_channel_instead(told: list[Any]) -> None:
    assert main(["--runtime-dir", "/r", "attach", "--channel", "unix:/c.sock", "--name", "x"]) == 0
    assert told == [AttachOptions(name="x", runtime=RuntimeDir(Path("/r")), channel=Path("/c.sock"))]


def test_launch_passes_qemus_command_line_unread(told: list[Any]) -> None:
    assert main(["launch", "--", "qemu-system-x86_64", "-name", "web,debug-threads=on", "--help"]) == 0
    assert told == [
        LaunchOptions(
            name="web",
            runtime=RuntimeDir(Path("/run/test")),
            argv=("qemu-system-x86_64", "-name", "web,debug-threads=on", "--help"),
        )
    ]


@pytest.mark.parametrize(
    "args",
    [
        ["attach"],
        ["attach", "--qmp", "/a", "--channel", "unix:/b"],
        ["attach", "--channel", "/b"],
        ["attach", "--qmp", "/run/.sock"],
        ["attach", "--qmp", "/a", "--name", "a b"],
        ["attach", "--qmp", "/a", "--execute-max", "0"],
        ["launch"],
        ["launch", "--", "qemu-system-x86_64"],
    ],
)
def test_a_command_line_that_makes_no_sense_is_2(
    told: list[Any], args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    assert told == []
    assert "Error: " in capsys.readouterr().err


def test_what_the_service_raises_is_one_line_and_its_exit_status(
    told: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def attach_main(options: AttachOptions) -> None:
        raise Forbidden(f"{options.qmp}: Permission denied")

    monkeypatch.setattr(sys.modules["virtagent_host.service.attach"], "attach_main", attach_main)
    assert main(["attach", "--qmp", "/a"]) == 5
    assert capsys.readouterr().err == "va-host: forbidden: /a: Permission denied\n"


def test_ctrl_c_is_130(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def attach_main(options: AttachOptions) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["virtagent_host.service.attach"], "attach_main", attach_main)
    assert main(["attach", "--qmp", "/a"]) == 130
