"""Commands that are done by programs of the system: passwords, shutdown, suspend. These are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.qgacalls import b64, call, error_of
from virtagent_guest.methods.qga import power, program


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which the agent looks for the programs of the system; see `fake`."""
    monkeypatch.setattr(program, "PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(power, "SYS_STATE", str(tmp_path / "state"))
    for name in (
        "systemctl",
        "pm-is-supported",
        "pm-hibernate",
        "pm-suspend",
        "pm-suspend-hybrid",
        "chpasswd",
    ):
        fake(tmp_path, name, "exit 4")
    return tmp_path


def fake(directory: Path, name: str, script: str) -> None:
    """Make a program that notes how it was called, then runs *script*."""
    (directory / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{directory}/called\n{script}\n')
    (directory / name).chmod(0o755)


def called(directory: Path) -> list[str]:
    return (directory / "called").read_text().splitlines()


async def test_a_password_reaches_chpasswd_by_its_input_only(programs: Path) -> None:
    fake(programs, "chpasswd", f"cat >{programs}/given")
    await call("guest-set-user-password", username="al'ice", password=b64(b"p:w$(x)\xff"), crypted=False)
    assert (programs / "given").read_bytes() == b"al'ice:p:w$(x)\xff\n"
    await call("guest-set-user-password", username="bob", password=b64(b"$6$x"), crypted=True)
    assert called(programs) == ["chpasswd ", "chpasswd -e"]


async def test_a_password_that_would_be_another_line_is_refused(programs: Path) -> None:
    for name, secret, said in (
        ("a", b"x\nroot:y", "forbidden characters in raw password"),
        ("a", b"x\0", "forbidden characters in raw password"),
        ("a\nroot", b"x", "forbidden characters in username"),
        ("root:x", b"x", "forbidden characters in username"),
        ("a", b"x" * 5000, "name and password are longer than 4096 bytes"),
    ):
        assert (
            await error_of("guest-set-user-password", username=name, password=b64(secret), crypted=False)
            == said
        )
    assert not (programs / "called").exists()


async def test_a_program_that_fails_is_quoted(programs: Path) -> None:
    fake(programs, "chpasswd", "echo 'no such user' >&2; exit 1")
    arguments = {"username": "a", "password": "eA==", "crypted": False}
    assert await error_of("guest-set-user-password", **arguments) == (
        "child process has failed to set user password: no such user"
    )
    fake(programs, "chpasswd", "kill -9 $$")
    assert await error_of("guest-set-user-password", **arguments) == (
        "child process has terminated abnormally"
    )
    (programs / "chpasswd").unlink()
    assert "chpasswd" in await error_of("guest-set-user-password", **arguments)


@pytest.mark.parametrize("mode", ["powerdown", "halt", "reboot"])
async def test_each_mode_of_shutdown_has_its_program(
    mode: str, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(programs, mode, "exit 0")
    fake(programs, "shutdown", "exit 0")
    monkeypatch.setattr(power, "SHUTDOWN", str(programs / "shutdown"))
    _, option = power._SHUTDOWN[mode]
    monkeypatch.setitem(power._SHUTDOWN, mode, (str(programs / mode), option))
    await call("guest-shutdown", mode=mode)
    (programs / mode).unlink()
    await call("guest-shutdown", mode=mode)
    assert called(programs) == [f"{mode} ", f"shutdown -h {option} +0 hypervisor initiated shutdown"]


async def test_another_mode_of_shutdown_is_refused() -> None:
    assert await error_of("guest-shutdown", mode="sleep") == (
        # As qemu-ga has it: without the second bracket.
        "mode is invalid (valid values are: halt|powerdown|reboot"
    )


async def test_suspending_tries_each_way_that_there_is(programs: Path) -> None:
    fake(programs, "systemctl", 'test "$1" = status && exit 3; exit 1')
    fake(programs, "pm-is-supported", "exit 0")
    fake(programs, "pm-suspend", "exit 1")
    (programs / "state").write_text("freeze mem disk\n")
    await call("guest-suspend-ram")
    assert called(programs) == [
        "systemctl status systemd-suspend",
        "systemctl suspend",
        "pm-is-supported --suspend",
        "pm-suspend ",
    ]
    assert (programs / "state").read_text() == "mem"


async def test_the_first_way_to_suspend_that_works_is_the_last(programs: Path) -> None:
    fake(programs, "systemctl", 'test "$1" = status && exit 3; exit 0')
    await call("guest-suspend-disk")
    await call("guest-suspend-hybrid")
    assert called(programs) == [
        "systemctl status systemd-hibernate",
        "systemctl hibernate",
        "systemctl status systemd-hybrid-sleep",
        "systemctl hybrid-sleep",
    ]


async def test_a_guest_that_cannot_suspend_says_so(programs: Path) -> None:
    (programs / "state").write_text("freeze\n")
    unsupported = "the requested suspend mode is not supported by the guest"
    for command in ("guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"):
        assert await error_of(command) == unsupported
    fake(programs, "systemctl", 'test "$1" = status && exit 3; exit 1')
    assert await error_of("guest-suspend-ram") == (
        "the helper program 'systemctl suspend' returned an unexpected exit status code (1)"
    )
