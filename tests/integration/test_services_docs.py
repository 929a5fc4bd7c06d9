"""The examples of docs/services.md do what the page says."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.integration import hostilelab, serviceslab
from tests.integration.serviceslab import DEADLINE, environ, lab

PAGE = (Path(__file__).parents[2] / "docs/services.md").read_text()


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE):
        yield


def block(language: str, holds: str) -> str:
    blocks = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", PAGE)
    found = [text for text in blocks if holds in text]
    assert len(found) == 1, f"{holds!r} is in {len(found)} examples"
    return str(found[0])


async def test_the_example_stores_a_backup(tmp_path: Path) -> None:
    script = block("sh", "bin/backup.put").removeprefix("#!/bin/sh\n")
    # The page's own directory is not for tests.
    script = script.replace("${BACKUPS:-/var/lib/virtagent/backups}", str(tmp_path))
    assert str(tmp_path) in script
    with lab("web-1", policy=block("toml", "backups of web servers")) as web:
        web.service("backup.put", script)
        commands = re.findall(r"(?m)^# (.*)\n(.*)$", block("console", "va-guest call"))
        for command, answer in commands:
            here = command.replace("va-guest call", " ".join(web.command()))
            result = await trio.run_process(
                ["bash", "-c", here], capture_stdout=True, capture_stderr=True, check=False, env=environ()
            )
            printed = (result.stdout + result.stderr).decode()
            expected = re.sub(r"123", r"\\d+", re.escape(answer).replace("…", ".*"))
            assert re.fullmatch(expected + "\n", printed), printed
        assert len(commands) == 2
        assert list((tmp_path / "web-1").iterdir()) == [tmp_path / "web-1/hostname.tar.gz"]
        result = await trio.run_process(
            [sys.executable, "-c", block("python", "call_service")],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**environ(), "VIRTAGENT_SOCKET": web.socket},
        )
        assert result.stdout == b"0 stored 18 bytes of root\n", result.stderr
        assert (tmp_path / "web-1/notes.txt").read_bytes() == b"remember the milk\n"


async def test_the_function_of_the_page_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "inventory-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inventory\nVersion: 1.0\n")
    point = re.search(r'(?m)^"(.*)" = "(.*)"$', block("toml", "entry-points"))
    assert point is not None
    (info / "entry_points.txt").write_text(f"[virtagent.services]\n{point[1]} = {point[2]}\n")
    (tmp_path / "inventory.py").write_text(block("python", "def owner"))
    path = f"{hostilelab.PYTHON_PATH}:{tmp_path}"
    monkeypatch.setattr(hostilelab, "PYTHON_PATH", path)
    monkeypatch.setattr(serviceslab, "PYTHON_PATH", path)
    with lab("web-1") as web:
        result = await web.call("inventory.owner", "12")
        assert json.loads(result.stdout) == {"vm": "web-1", "owner": "alice", "room": "12"}
