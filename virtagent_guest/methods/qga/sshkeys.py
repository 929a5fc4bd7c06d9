"""guest-ssh-get-, -add- and -remove-authorized-keys.

The agent is root, and the files are their user's, who may put a link anywhere in place of them. So everything
below the home directory is reached from an open directory, and no link is followed: a user can neither have
another file shown to the host nor have one overwritten. A file is replaced whole, by a rename.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import stat
from collections.abc import Iterator

from virtagent_protocol.limits import MIB
from virtagent_protocol.values import Struct

from .command import CommandRegistry, QgaError, in_thread, reason

registry = CommandRegistry()

DIRECTORY, FILE = ".ssh", "authorized_keys"
#: Bytes of the file that are read.
FILE_MAX = 1 * MIB

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@registry.command("guest-ssh-get-authorized-keys")
async def get_authorized_keys(username: str) -> Struct:
    """Return the public keys with which a user may log in, in the order of the file, without its comments."""
    return await in_thread(_get, username)


@registry.command("guest-ssh-add-authorized-keys")
async def add_authorized_keys(username: str, keys: list[str], reset: bool = False) -> None:
    """Add public keys to those of a user, or with reset put them in their place."""
    _check_keys(keys)
    await in_thread(_add, username, keys, reset)


@registry.command("guest-ssh-remove-authorized-keys")
async def remove_authorized_keys(username: str, keys: list[str]) -> None:
    """Remove public keys from those of a user. Those that are not there are no error."""
    _check_keys(keys)
    await in_thread(_remove, username, keys)


def _check_keys(keys: list[str]) -> None:
    """Refuse what is no key. A blank one is passed over: virsh sends one for its file's last line feed."""
    for key in keys:
        if key.startswith("#") or "\n" in key or "\r" in key:
            raise QgaError(f"invalid OpenSSH public key: '{key}'")


def _get(username: str) -> Struct:
    user = _user(username)
    with _opened(user) as directory:
        lines = _read(directory, user)
    keys = [line.strip().encode(errors="surrogateescape").decode(errors="replace") for line in lines]
    return {"keys": [key for key in keys if key and not key.startswith("#")]}


def _add(username: str, keys: list[str], reset: bool) -> None:
    user = _user(username)
    with _opened(user, make=True) as directory:
        lines: list[str] = []
        if not reset:
            with contextlib.suppress(_Missing):
                lines = _read(directory, user)
        for key in keys:
            if key.strip() and key not in lines:
                lines.append(key)
        _write(directory, user, lines)


def _remove(username: str, keys: list[str]) -> None:
    user = _user(username)
    with contextlib.suppress(_Missing), _opened(user) as directory:
        lines = _read(directory, user)
        _write(directory, user, [line for line in lines if not line.strip() or line not in keys])


class _Missing(QgaError):
    """There is no such file or directory yet."""


def _user(username: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(username)
    except KeyError:
        raise QgaError(f"failed to lookup user '{username}': there is no such user") from None


@contextlib.contextmanager
def _opened(user: pwd.struct_passwd, *, make: bool = False) -> Iterator[int]:
    """Open a user's .ssh directory, made if it is wanted and missing."""
    path = os.path.join(user.pw_dir, DIRECTORY)
    with _told(f"failed to open directory '{user.pw_dir}'"):
        home = os.open(user.pw_dir, _DIRECTORY_FLAGS)
    try:
        if make:
            with _told(f"failed to create directory '{path}'"), contextlib.suppress(FileExistsError):
                os.mkdir(DIRECTORY, 0o700, dir_fd=home)
                os.chown(DIRECTORY, user.pw_uid, user.pw_gid, dir_fd=home, follow_symlinks=False)
        with _told(f"failed to read '{os.path.join(path, FILE)}'"):
            directory = os.open(DIRECTORY, _DIRECTORY_FLAGS | _NO_LINK, dir_fd=home)
    finally:
        os.close(home)
    try:
        yield directory
    finally:
        os.close(directory)


def _read(directory: int, user: pwd.struct_passwd) -> list[str]:
    """Return the lines of the file."""
    path = os.path.join(user.pw_dir, DIRECTORY, FILE)
    with _told(f"failed to read '{path}'"):
        fd = os.open(FILE, os.O_RDONLY | os.O_NOCTTY | _NO_LINK, dir_fd=directory)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise QgaError(f"failed to read '{path}': it is not a regular file")
            data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise QgaError(f"failed to read '{path}': it has more than {FILE_MAX} bytes")
    # What is not UTF-8 goes back as it came.
    text = data.decode(errors="surrogateescape")
    return text.removesuffix("\n").split("\n") if text else []


def _write(directory: int, user: pwd.struct_passwd, lines: list[str]) -> None:
    """Replace the file."""
    data = "".join(line + "\n" for line in lines).encode(errors="surrogateescape")
    temporary = f".{FILE}.{secrets.token_hex(8)}"
    with _told(f"failed to write to '{os.path.join(user.pw_dir, DIRECTORY, FILE)}'"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
        fd = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fchown(fd, user.pw_uid, user.pw_gid)
                os.fchmod(fd, 0o600)
                os.fsync(fd)
            os.rename(temporary, FILE, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an OSError into a QgaError that says what was tried."""
    try:
        yield
    except FileNotFoundError as error:
        raise _Missing(f"{what}: {reason(error)}") from error
    except OSError as error:
        raise QgaError(f"{what}: {reason(error)}") from error
