"""How a Python file is run: as the only module of a Python of its own, which calls its function once."""

from __future__ import annotations

import sys

from virtagent_protocol.signature import PREFIX

from .extension import Extension

#: Arguments: the file and the function. What the function prints goes where its errors go, so that it cannot
#: be taken for the result. -I: nothing from the environment, the user's directories or the current one;
#: -B: no byte code is left beside the file.
_CALLER = """
import importlib.util, json, os, sys
result = os.dup(1)
os.dup2(2, 1)
path, name = sys.argv[1:]
sys.argv[:] = [path]
arguments = json.loads(sys.stdin.buffer.read())
spec = importlib.util.spec_from_file_location("va_x_" + name, path)
module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
returned = getattr(module, name)(**arguments)
with open(result, "wb") as file:
    file.write(json.dumps(returned, allow_nan=False).encode())
"""


def command(extension: Extension) -> list[str]:
    """Return the command that runs a Python file: arguments on stdin, the result on stdout, both JSON."""
    function = extension.name.removeprefix(PREFIX)
    return [sys.executable, "-IB", "-c", _CALLER, extension.path, function]
