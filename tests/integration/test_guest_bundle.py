"""va-guest.pyz, as `make guest-bundle` makes it, and the unit that runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from virtagent_protocol import __version__

ROOT = Path(__file__).parents[2]
#: Seconds for a build that has to download, or for a start that has to compile.
DEADLINE = 120
#: Imports what the agent imports when it serves, and prints where trio came from.
IMPORT_ALL = "import virtagent_guest.service, trio; print(trio.__file__)"


@pytest.fixture(scope="module")
def bundle() -> Path:
    out = ROOT / "build" / "va-guest.pyz"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_bundle.py")], check=True, timeout=DEADLINE)
    return out


def run(*command: str, **variables: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return done.stdout.strip()


def test_the_bundle_runs_without_any_installed_package(bundle: Path) -> None:
    # -S: no site-packages; -I: nothing from the environment either.
    assert run(sys.executable, "-I", "-S", str(bundle), "--version") == f"va-guest {__version__}"
    assert os.access(bundle, os.X_OK)
    with bundle.open("rb") as file:
        assert file.readline() == b"#!/usr/bin/python3 -I\n"


def test_modules_are_not_compiled_at_each_start(bundle: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(bundle)!r}); {IMPORT_ALL}"
    assert run(sys.executable, "-I", "-S", "-c", code) == f"{bundle}/trio/__init__.pyc"


def test_another_version_of_python_uses_the_source(bundle: Path, tmp_path: Path) -> None:
    # A bundle compiled by another version is one with another magic number.
    other = tmp_path / "other.pyz"
    with zipfile.ZipFile(bundle) as archive, zipfile.ZipFile(other, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            changed.writestr(name, b"\0\0\r\n" + content[4:] if name.endswith(".pyc") else content)
    code = f"import sys; sys.path.insert(0, {str(other)!r}); {IMPORT_ALL}"
    assert run(sys.executable, "-I", "-S", "-c", code) == f"{other}/trio/__init__.py"


def test_the_bundle_has_no_tests_and_all_licenses(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
    assert not [name for name in names if "/_tests/" in name or "/tests/" in name]
    assert "LICENSE" in names
    distributions = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    packages = {name.partition("-")[0] for name in distributions}
    needed = {"trio", "attrs", "outcome", "sniffio", "sortedcontainers", "idna", "defusedxml", "jeepney"}
    assert needed <= packages


def test_the_same_inputs_give_the_same_bundle(bundle: Path) -> None:
    before = bundle.read_bytes()
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_bundle.py")], check=True, timeout=DEADLINE)
    assert bundle.read_bytes() == before


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_correct(tmp_path: Path) -> None:
    text = (ROOT / "contrib" / "systemd" / "va-guest.service").read_text()
    # The program need not be installed here; that there is one is what tests/guest sees.
    unit = tmp_path / "va-guest.service"
    unit.write_text(text.replace("ExecStart=va-guest\n", "ExecStart=true\n"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
