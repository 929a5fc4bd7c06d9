"""`va-host stats` and `va-host top` run to their end."""

from __future__ import annotations

import os
import subprocess

from tests.integration.forwardlab import Lab
from tests.integration.hostilelab import DEADLINE, PYTHON_PATH


def run(vm: Lab, *arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        vm.command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "PYTHONPATH": PYTHON_PATH, **environ},
    )
