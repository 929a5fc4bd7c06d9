"""The runtime directory and the names of VMs (virtagent_host.runtime)."""

import os
import socket
import stat
from pathlib import Path

import pytest

from virtagent_host.runtime import AlreadyServed, BadName, RuntimeDir, check_name, lock
from virtagent_protocol.errors import Forbidden, NotThere

ALL = {
    "VIRTAGENT_RUNTIME_DIR": "/from/virtagent",
    "RUNTIME_DIRECTORY": "/from/systemd:/from/another",
    "XDG_RUNTIME_DIR": "/from/xdg",
}


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in ALL.items() if name not in names}


def test_the_option_goes_before_every_variable() -> None:
    assert RuntimeDir.find("/given", ALL).path == Path("/given")


def test_our_own_variable_goes_before_systemds() -> None:
    assert RuntimeDir.find(None, ALL).path == Path("/from/virtagent")


def test_of_systemds_list_the_first_directory_is_taken() -> None:
    assert RuntimeDir.find(None, without("VIRTAGENT_RUNTIME_DIR")).path == Path("/from/systemd")


def test_root_uses_run_whatever_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert RuntimeDir.find(None, {"XDG_RUNTIME_DIR": "/x"}).path == Path("/run/virtagent")


def test_a_user_has_it_in_the_xdg_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert RuntimeDir.find(None, {"XDG_RUNTIME_DIR": "/x"}).path == Path("/x/virtagent")


def test_a_user_without_any_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotThere, match=r"--runtime-dir DIR or set \$VIRTAGENT_RUNTIME_DIR"):
        RuntimeDir.find(None, {})


def test_a_relative_directory_is_made_absolute() -> None:
    assert RuntimeDir.find("here", {}).path == Path.cwd() / "here"


@pytest.mark.parametrize("name", ["a", "demo", "web-1.example_org", "9", "x" * 64])
def test_a_name_of_letters_digits_and_a_few_marks_is_good(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "ä", "x" * 65])
def test_a_name_that_is_no_safe_file_name_is_refused(name: str) -> None:
    with pytest.raises(BadName, match="--name"):
        check_name(name)


def test_a_path_too_long_for_a_unix_socket_is_refused_with_its_length() -> None:
    runtime = RuntimeDir(Path("/" + "d" * 92))
    with pytest.raises(BadName, match="108 bytes are too long for a unix socket"):
        runtime.vm("x")
    assert len(os.fsencode(RuntimeDir(Path("/" + "d" * 91)).vm("x").chardev)) < 107


def test_the_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path / "run")
    runtime.create()
    runtime.create()
    assert stat.S_IMODE(runtime.path.stat().st_mode) == 0o700


def test_a_directory_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(Forbidden, match="chmod 700"):
        RuntimeDir(tmp_path).create()


def test_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(NotThere, match="not a directory"):
        RuntimeDir(tmp_path / "run").create()


def test_a_vm_is_attached_if_its_bridge_accepts_connections(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path)
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as dead:
        alive.bind(str(runtime.vm("alive").bridge))
        alive.listen()
        dead.bind(str(runtime.vm("dead").bridge))
        assert runtime.attached() == ["alive"]


def test_in_a_directory_that_is_not_there_no_vm_is_attached(tmp_path: Path) -> None:
    assert RuntimeDir(tmp_path / "none").attached() == []


def test_of_two_services_for_one_name_the_second_is_told_the_firsts_pid(tmp_path: Path) -> None:
    paths = RuntimeDir(tmp_path).vm("demo")
    with lock(paths), pytest.raises(AlreadyServed, match=rf"pid {os.getpid()}\)"), lock(paths):
        pass


def test_a_lock_that_was_given_back_can_be_taken_again_and_leaves_no_file(tmp_path: Path) -> None:
    paths = RuntimeDir(tmp_path).vm("demo")
    for _ in range(2):
        with lock(paths):
            assert paths.lock.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_left_by_a_killed_service_holds_nobody_up(tmp_path: Path) -> None:
    paths = RuntimeDir(tmp_path).vm("demo")
    paths.lock.write_text("999999999\n")
    with lock(paths):
        assert paths.lock.read_text() == f"{os.getpid()}\n"
