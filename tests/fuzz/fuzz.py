"""One fuzz target under atheris: `python -m tests.fuzz.fuzz TARGET [libFuzzer's arguments]`."""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

# Coverage is of what was imported here, and before that nothing was.
with atheris.instrument_imports(include=["virtagent_protocol", "virtagent_host", "virtagent_guest"]):
    from tests.fuzz.targets import TARGETS


def _run(name: str, data: bytes) -> None:
    TARGETS[name](data)  # libFuzzer takes no result


def main() -> None:
    """Fuzz until libFuzzer's own limits end it, or an input breaks a promise."""
    name, *arguments = sys.argv[1:]
    atheris.Setup([name, *arguments], lambda data: _run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
