"""Section pressure: for what share of the time something waited for want of a resource.

It is the kernel's pressure stall information (kernel: Documentation/accounting/psi.rst): *some* is the share
in which at least one task waited, *full* that in which all did.
"""

from __future__ import annotations

from virtagent_protocol.values import Struct

from . import procfs

DIRECTORY = "/proc/pressure"
RESOURCES = ("cpu", "memory", "io")

_AVERAGES = ("avg10", "avg60", "avg300")
_PERCENT = 100.0
_MICROSECOND = 1e-6


def take() -> dict[str, str]:
    """Read the files now.

    Raises:
        Unavailable: this kernel does not measure it.
    """
    try:
        return {name: procfs.read(f"{DIRECTORY}/{name}") for name in RESOURCES}
    except OSError as error:
        # The files are there and EOPNOTSUPP to read if it was only not enabled.
        raise procfs.Unavailable(
            f"this kernel tells no pressure ({error.strerror}): it needs CONFIG_PSI, "
            "and psi=1 on its command line if that is off by default"
        ) from None


def describe(files: dict[str, str]) -> Struct:
    """Return the section."""
    return {name: {**_parse(text)} for name, text in files.items()}


def _parse(text: str) -> dict[str, Struct]:
    result: dict[str, Struct] = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if kind not in ("some", "full") or not {*_AVERAGES, "total"} <= values.keys():
            continue
        shares: Struct = {name: min(float(values[name]) / _PERCENT, 1.0) for name in _AVERAGES}
        result[kind] = {**shares, "total": int(values["total"]) * _MICROSECOND}
    return result
