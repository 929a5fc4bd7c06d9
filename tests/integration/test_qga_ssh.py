"""guest-ssh-*: keys in a home directory of this machine, whose user is not to be trusted."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from tests.integration.qgacalls import call, error_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory of the user "alice", who is whoever runs the tests."""
    home = tmp_path / "alice"
    home.mkdir()

    def getpwnam(name: str) -> pwd.struct_passwd:
        if name != "alice":
            raise KeyError(name)
        return pwd.struct_passwd(("alice", "x", os.getuid(), os.getgid(), "", str(home), "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    return home


async def keys_of_alice() -> list[str]:
    answer = await call("guest-ssh-get-authorized-keys", username="alice")
    keys = answer["keys"]
    assert isinstance(keys, list)
    return keys


async def test_keys_are_added_told_and_removed(home: Path) -> None:
    file = home / ".ssh" / "authorized_keys"
    await call("guest-ssh-add-authorized-keys", username="alice", keys=["ssh-ed25519 A a", "ssh-rsa B b"])
    assert file.read_text() == "ssh-ed25519 A a\nssh-rsa B b\n"
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
    await call("guest-ssh-add-authorized-keys", username="alice", keys=["ssh-rsa B b", "ssh-rsa C c"])
    assert await keys_of_alice() == ["ssh-ed25519 A a", "ssh-rsa B b", "ssh-rsa C c"]
    await call("guest-ssh-remove-authorized-keys", username="alice", keys=["ssh-rsa B b", "ssh-rsa X x"])
    assert await keys_of_alice() == ["ssh-ed25519 A a", "ssh-rsa C c"]
    await call("guest-ssh-add-authorized-keys", username="alice", keys=["ssh-rsa D d"], reset=True)
    assert file.read_text() == "ssh-rsa D d\n"
    assert os.listdir(file.parent) == ["authorized_keys"]


async def test_what_a_user_wrote_beside_the_keys_stays(home: Path) -> None:
    file = home / ".ssh" / "authorized_keys"
    file.parent.mkdir()
    file.write_bytes(b"# mine \xff\n\n  ssh-rsa A a  \nssh-rsa B \xe4\x0c")
    assert await keys_of_alice() == ["ssh-rsa A a", "ssh-rsa B \ufffd"]
    await call("guest-ssh-add-authorized-keys", username="alice", keys=["ssh-rsa C c"])
    assert file.read_bytes() == b"# mine \xff\n\n  ssh-rsa A a  \nssh-rsa B \xe4\x0c\nssh-rsa C c\n"


async def test_keys_that_are_no_keys_and_users_that_are_none_are_refused(home: Path) -> None:
    for key in ("# comment", "a\nssh-rsa B b", "a\rb"):
        for command in ("guest-ssh-add-authorized-keys", "guest-ssh-remove-authorized-keys"):
            assert await error_of(command, username="alice", keys=[key]) == (
                f"invalid OpenSSH public key: '{key}'"
            )
    assert not (home / ".ssh").exists()
    assert await error_of("guest-ssh-get-authorized-keys", username="eve") == (
        "failed to lookup user 'eve': there is no such user"
    )


async def test_a_user_without_keys_has_none_to_tell_and_none_to_remove(home: Path) -> None:
    file = home / ".ssh" / "authorized_keys"
    assert await error_of("guest-ssh-get-authorized-keys", username="alice") == (
        f"failed to read '{file}': No such file or directory"
    )
    await call("guest-ssh-remove-authorized-keys", username="alice", keys=["ssh-rsa A a"])
    assert not file.parent.exists()


async def test_a_user_cannot_make_the_agent_follow_a_link(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's\n")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "authorized_keys").symlink_to(secret)
    assert "Too many levels of symbolic links" in await error_of(
        "guest-ssh-get-authorized-keys", username="alice"
    )
    assert "Too many levels" in await error_of(
        "guest-ssh-add-authorized-keys", username="alice", keys=["ssh-rsa A a"]
    )
    await call("guest-ssh-add-authorized-keys", username="alice", keys=["ssh-rsa A a"], reset=True)
    assert secret.read_text() == "root's\n"
    assert (home / ".ssh" / "authorized_keys").read_text() == "ssh-rsa A a\n"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / ".ssh").rename(home / "old")
    (home / ".ssh").symlink_to(elsewhere)
    assert "failed to read" in await error_of(
        "guest-ssh-add-authorized-keys", username="alice", keys=["ssh-rsa A a"]
    )
    assert os.listdir(elsewhere) == []


async def test_what_is_no_file_is_not_waited_for(home: Path) -> None:
    (home / ".ssh").mkdir()
    os.mkfifo(home / ".ssh" / "authorized_keys")
    assert "it is not a regular file" in await error_of("guest-ssh-get-authorized-keys", username="alice")


async def test_a_blank_key_is_passed_over(home: Path) -> None:
    """virsh sends one for the last line feed of its file."""
    await call("guest-ssh-add-authorized-keys", username="alice", keys=["ssh-rsa A a", "", "  "])
    assert (home / ".ssh/authorized_keys").read_text() == "ssh-rsa A a\n"
    await call("guest-ssh-remove-authorized-keys", username="alice", keys=[""])
    assert (home / ".ssh/authorized_keys").read_text() == "ssh-rsa A a\n"
