"""guest-get-osinfo and guest-get-host-name."""

from __future__ import annotations

import os
import re
import socket

from virtagent_protocol.values import Struct

from .command import CommandRegistry, in_thread

registry = CommandRegistry()

#: os-release(5): the first that there is counts.
FILES = ("/etc/os-release", "/usr/lib/os-release")
#: Member of GuestOSInfo → variable of os-release.
_VARIABLES = {
    "id": "ID",
    "name": "NAME",
    "pretty-name": "PRETTY_NAME",
    "version": "VERSION",
    "version-id": "VERSION_ID",
    "variant": "VARIANT",
    "variant-id": "VARIANT_ID",
}
#: Bytes of the file that are read. It has less than 1 KiB.
_SIZE_MAX = 64 * 1024

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
#: What a backslash may escape within double quotes, as in a shell.
_ESCAPED = re.compile(r"\\([$'\"\\`])")


@registry.command("guest-get-osinfo")
async def get_osinfo() -> Struct:
    """Return what kernel this is, and what os-release says of the system. What is not told is left out."""
    return await in_thread(_osinfo)


@registry.command("guest-get-host-name")
async def get_host_name() -> Struct:
    """Return the guest's host name."""
    return {"host-name": socket.gethostname()}


def _osinfo() -> Struct:
    kernel = os.uname()
    info: Struct = {
        "kernel-release": kernel.release,
        "kernel-version": kernel.version,
        "machine": kernel.machine,
    }
    variables = _read_first()
    for member, variable in _VARIABLES.items():
        if variable in variables:
            info[member] = variables[variable]
    return info


def _read_first() -> dict[str, str]:
    for path in FILES:
        try:
            with open(path, "rb") as file:
                return parse(file.read(_SIZE_MAX).decode(errors="replace"))
        except OSError:
            continue
    return {}


def parse(text: str) -> dict[str, str]:
    """Return the variables that an os-release file sets."""
    variables = {}
    for line in text.splitlines():
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match is not None:
            variables[match[1]] = _unquoted(match[2])
    return variables


def _unquoted(value: str) -> str:
    if value[:1] == "'":
        return value[1:].partition("'")[0]
    if value[:1] == '"':
        return _ESCAPED.sub(r"\1", re.match(r'"((?:\\.|[^"\\])*)', value)[1])  # type: ignore[index]
    # Without quotes a value is one word, and a semicolon would begin another command.
    return re.split(r"[ ;]", value, maxsplit=1)[0]
