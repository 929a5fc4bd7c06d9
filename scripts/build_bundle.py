#!/usr/bin/env python3
"""Build va-guest.pyz: the agent and all it needs in one file, for any guest with Python >= 3.10.

    scripts/build_bundle.py [OUT]        (default: build/va-guest.pyz)

The rules:

1. The dependencies are pure Python wheels, the same for every version and machine. They are
   downloaded when the requirements change, and kept beside the bundle.
2. Every module is there as source *and* compiled by the Python that runs this script. zipimport
   takes the compiled one if it is its own version's and the source otherwise. Compiling trio at each
   start would take seconds in an emulated guest, so run this with the guest's version of Python.
3. The compiled ones are "unchecked hash-based" (PEP 552): zipimport would compare a time stamp with
   the archive's, which has a resolution of two seconds and is rewritten below.
4. The same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

ROOT = Path(__file__).resolve().parent.parent
OUR_PACKAGES = (ROOT / "protocol" / "virtagent_protocol", ROOT / "virtagent_guest")

#: The oldest Python the bundle runs on.
OLDEST = "3.10"
#: What trio needs on Pythons older than the one that runs pip here, which leaves them out by itself.
BACKPORTS = ["exceptiongroup", "typing-extensions"]
#: Never used by the agent: tests and command-line tools.
LEFT_OUT = re.compile(r"(^|/)(_?tests|_tools|__pycache__|bin)/")
#: What of a package belongs into the bundle: its modules, and the terms under which we may pass them on.
WANTED = re.compile(r"\.py$|\.dist-info/(licenses/.*|LICENSE[^/]*|NOTICE[^/]*|AUTHORS[^/]*|COPYING[^/]*)$")

#: -I: nothing from the environment, the user's directories or the current one gets into a root process.
SHEBANG = b"#!/usr/bin/python3 -I\n"
MAIN = b"from virtagent_guest.commands import main\n\nraise SystemExit(main())\n"
#: The oldest time that a zip can hold; any fixed one would do.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "va-guest.pyz"
    out.parent.mkdir(parents=True, exist_ok=True)
    dependencies = fetch(requirements(), out.parent / "bundle")
    files = {"__main__.py": MAIN, "LICENSE": (ROOT / "LICENSE").read_bytes()}
    files |= collect(dependencies, dependencies)
    for package in OUR_PACKAGES:
        files |= collect(package, package.parent)
    write(out, files)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, compiled for Python {version}, runs on {OLDEST} and later"
    )


def requirements() -> list[str]:
    """Return what the agent needs, as pyproject.toml says, without environment markers."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["guest"] + BACKPORTS
    return [requirement.partition(";")[0].strip() for requirement in needed]


def fetch(needed: list[str], directory: Path) -> Path:
    """Install the requirements into *directory*, if that was not done before, and return it."""
    key = hashlib.sha256("\n".join([OLDEST, *needed]).encode()).hexdigest()
    stamp = directory / ".requirements"
    if stamp.exists() and stamp.read_text() == key:
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    portable = ["--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none"]
    target = [f"--python-version={OLDEST}", "--no-compile", "--target", str(directory)]
    done = subprocess.run([*pip, *portable, *target, *needed], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pip could not fetch {', '.join(needed)}:\n{done.stderr.rstrip()}")
    stamp.write_text(key)
    return directory


def collect(top: Path, base: Path) -> dict[str, bytes]:
    """Return name in the archive → content of what is wanted under *top*, and its byte code."""
    files = {}
    for path in sorted(top.rglob("*")):
        name = path.relative_to(base).as_posix()
        if not WANTED.search(name) or LEFT_OUT.search(name) or not path.is_file():
            continue
        files[name] = path.read_bytes()
        if path.suffix == ".py":
            files[name + "c"] = compiled(path, name)
    return files


def compiled(path: Path, name: str) -> bytes:
    """Return the byte code of a module; in tracebacks it is called *name*."""
    with tempfile.TemporaryDirectory() as scratch:
        result = os.path.join(scratch, "module.pyc")
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(path), result, dfile=name, doraise=True, invalidation_mode=mode)
        return Path(result).read_bytes()


def write(out: Path, files: dict[str, bytes]) -> None:
    """Write the executable archive, whole or not at all."""
    buffer = io.BytesIO(SHEBANG)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(name, ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    partial = out.with_name(out.name + ".part")
    partial.write_bytes(buffer.getvalue())
    partial.chmod(0o755)
    partial.replace(out)


if __name__ == "__main__":
    main()
