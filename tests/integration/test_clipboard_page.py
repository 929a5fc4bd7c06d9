"""The examples of docs/clipboard.md do what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.clipboardlab import DEADLINE, PNG, environment, lab
from tests.integration.displays import xvfb
from tests.integration.hostilelab import ROOT

PAGE = ROOT / "docs" / "clipboard.md"


def test_the_commands_of_the_page_work_as_they_stand_there(tmp_path: Path) -> None:
    text = PAGE.read_text()
    [settings] = re.findall(r"```toml\n.*?\n(\[session\]\n.*?)\n```", text, re.DOTALL)
    assert settings.startswith('[session]\nclipboard = "both"')
    [example] = re.findall(r"<!-- example -->\n(.*?)<!-- end -->", text, re.DOTALL)
    (tmp_path / "picture.png").write_bytes(PNG)
    program = tmp_path / "bin" / "va-host"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m virtagent_host.cli "$@"\n')
    program.chmod(0o755)
    with xvfb() as display, lab(display) as vm:
        done = subprocess.run(
            ["sh", "-eu", "-c", example],
            cwd=tmp_path,
            env={
                **environment({}),
                "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
                "VIRTAGENT_RUNTIME_DIR": str(vm.runtime.path),
            },
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    if done.returncode:
        pytest.fail(done.stderr.decode())
    assert done.stdout == b"hello from the host\nimage/png\n"
    assert (tmp_path / "copy.png").read_bytes() == PNG
