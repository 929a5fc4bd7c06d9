"""exec and cp with a guest that has only qemu-ga: the real one, on a unix socket, by the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from .qgalab import DEADLINE, run_qemu_ga
from .test_qga_host import PYTHON_PATH, Attached, attached


@pytest.fixture
async def vm(tmp_path: Path) -> AsyncIterator[Attached]:
    with trio.fail_after(5 * DEADLINE):
        async with run_qemu_ga(tmp_path) as path, attached(tmp_path, path, "--agent", "qga") as vm:
            yield vm


async def execute(vm: Attached, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run `va-host exec`, and return its status and what it wrote."""
    done: subprocess.CompletedProcess[bytes] = await trio.run_process(
        [sys.executable, "-m", "virtagent_host.cli", "exec", "demo", *arguments],
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PYTHON_PATH, "VIRTAGENT_RUNTIME_DIR": str(vm.runtime)},
    )
    return done.returncode, done.stdout, done.stderr


async def copy(vm: Attached, *arguments: str) -> tuple[int, str]:
    done = await vm.va_host("cp", *arguments)
    return done.returncode, done.stderr.decode()


async def test_a_program_gets_input_and_arguments_and_gives_output_and_status(vm: Attached) -> None:
    everything = bytes(range(256)) * 400
    assert await execute(vm, "cat", stdin=everything) == (0, everything, b"")
    script = 'printf "%s|" "$@"; echo wrong >&2; exit 7'
    words = ["a b", "'", "$HOME", "", "ä"]
    assert await execute(vm, "--", "sh", "-c", script, "x", *words) == (
        7,
        "a b|'|$HOME||ä|".encode(),
        b"wrong\n",
    )


async def test_what_guest_exec_lacks_and_a_shell_has_works(vm: Attached, tmp_path: Path) -> None:
    directory = tmp_path / "with ' and $x"
    directory.mkdir()
    script = 'pwd; echo "$ONE"; echo to stderr >&2'
    given = {"argv": ["sh", "-c", script], "cwd": str(directory), "env": {"ONE": "1 $2"}, "merge": True}
    result = await call(vm, "va_exec", **given)
    assert result == {
        "code": 0,
        "stdout": f"{directory}\n1 $2\nto stderr\n",
        "format": "utf8",
        "truncated": False,
    }
    bare = await call(vm, "va_exec", argv=["env"], env={"A": "b"}, **{"clear-env": True})
    assert sorted(line.partition("=")[0] for line in bare["stdout"].split()) == ["A", "PATH"]


async def test_how_a_program_ended_is_told(vm: Attached) -> None:
    assert (await execute(vm, "--", "sh", "-c", "kill -TERM $$"))[0] == 128 + 15
    status, _, words = await execute(vm, "/nonexistent/program")
    assert status not in (0, 1)
    assert b"/nonexistent/program" in words
    result = await call(vm, "va_exec", argv=["sleep", "1000"], deadline=0.3)
    assert (result["signal"], result["deadline"]) == (15, True)


async def test_signals_are_passed_on_and_a_client_that_leaves_hangs_its_program_up(
    vm: Attached, tmp_path: Path
) -> None:
    begun, told, hung_up = (tmp_path / name for name in ("begun", "told", "hung-up"))
    script = f"trap 'touch {told}' TERM; trap 'touch {hung_up}; exit' HUP; touch {begun}"
    script += "; while :; do sleep 0.1; done"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "virtagent_host.cli", "exec", "demo", "-n", "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": PYTHON_PATH, "VIRTAGENT_RUNTIME_DIR": str(vm.runtime)},
    )
    try:
        await there_is(begun)
        process.terminate()
        await there_is(told)
    finally:
        process.kill()
        await process.wait()
    await there_is(hung_up)


async def there_is(path: Path) -> None:
    with trio.fail_after(DEADLINE):
        while not path.exists():
            await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"pty": {"rows": 24, "cols": 80}}, "terminals"),
        ({"user": "nobody"}, "other users"),
        ({"limits": {"cpu": 1}}, "limits"),
        ({"detach": True}, "detached jobs"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    vm: Attached, arguments: dict[str, Any], what: str
) -> None:
    error = await call(vm, "va_exec", argv=["true"], **arguments)
    assert "this guest runs qemu-ga" in error
    assert what in error
    assert "install va-guest" in error


async def test_files_are_copied_both_ways(vm: Attached, tmp_path: Path) -> None:
    source, there, back = (tmp_path / name for name in ("source", "there ' $x", "back"))
    source.write_bytes(os.urandom(1_300_000) + bytes(range(256)))
    source.chmod(0o640)
    assert await copy(vm, str(source), f"demo:{there}") == (0, "")
    assert there.read_bytes() == source.read_bytes()
    assert there.stat().st_mode & 0o777 == 0o640
    assert await copy(vm, f"demo:{there}", str(back)) == (0, "")
    assert back.read_bytes() == source.read_bytes()
    # Into a directory, over what is there; and one that is empty.
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "source").write_bytes(b"old")
    source.write_bytes(b"")
    assert await copy(vm, str(source), f"demo:{tmp_path / 'into'}") == (0, "")
    assert (tmp_path / "into" / "source").read_bytes() == b""
    assert list((tmp_path / "into").iterdir()) == [tmp_path / "into" / "source"]


async def test_holes_are_holes(vm: Attached, tmp_path: Path) -> None:
    source, there = tmp_path / "source", tmp_path / "there"
    with source.open("wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    assert await copy(vm, str(source), f"demo:{there}") == (0, "")
    assert there.read_bytes() == source.read_bytes()


async def test_trees_and_what_is_missing_are_refused_in_words(vm: Attached, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    for arguments in (
        ("-r", f"demo:{tmp_path / 'tree'}", str(tmp_path / "copy")),
        ("-r", str(tmp_path / "tree"), f"demo:{tmp_path / 'copy'}"),
    ):
        status, words = await copy(vm, *arguments)
        assert status != 0
        assert "this guest runs qemu-ga" in words
        assert "directories" in words
        assert not (tmp_path / "copy").exists()
    status, words = await copy(vm, f"demo:{tmp_path / 'nothing'}", str(tmp_path / "copy"))
    assert status != 0
    assert "No such file or directory" in words
    status, words = await copy(vm, str(tmp_path / "tree" / "file"), f"demo:{tmp_path / 'no' / 'way'}")
    assert status != 0
    assert "No such file or directory" in words
    assert not list(tmp_path.rglob("*va-part*"))


async def call(vm: Attached, command: str, **arguments: Any) -> Any:
    """Return what a command of the bridge answers: its result, or its error's text."""
    import json

    (answer,) = await vm.qmp(json.dumps({"execute": command, "arguments": arguments}).encode())
    return answer["return"] if "return" in answer else answer["error"]["desc"]
