"""The runtime directory: where the sockets and locks of attached VMs are, and how VMs are named.

The rules:

1. One directory, mode 0700, owned by whoever runs va-host: `--runtime-dir`, else
   ``$VIRTAGENT_RUNTIME_DIR``, else systemd's ``$RUNTIME_DIRECTORY``, else ``/run/virtagent`` for root or
   ``$XDG_RUNTIME_DIR/virtagent``.
2. A VM has three files there: ``NAME.qmp`` (the bridge, to which clients connect), ``NAME.chardev`` (the
   virtagent chardev, on which QEMU listens) and ``NAME.lock`` (held by the va-host that serves the VM).
   ``NAME.events`` and ``NAME.events.1`` hold what the guest told; they stay, for the next va-host.
3. A socket file proves nothing: a killed va-host leaves it behind. A VM is attached if somebody accepts
   connections on its bridge; a name is free if its lock is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from virtagent_protocol.errors import FailureKind, Forbidden, NotThere, VirtagentError

#: sockaddr_un.sun_path holds 108 bytes with its closing NUL (unix(7)).
SOCKET_PATH_MAX = 107
#: Long enough for a UUID and a word, short enough for SOCKET_PATH_MAX in any sane directory.
NAME_MAX = 64

BRIDGE_SUFFIX = ".qmp"
CHARDEV_SUFFIX = ".chardev"
LOCK_SUFFIX = ".lock"
EVENTS_SUFFIX = ".events"

#: The longest process id (kernel.pid_max is 2^22 at most).
_PID = 1 << 22

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}")


class BadName(VirtagentError):
    """A VM name, or a path made of it, that cannot be used."""

    kind = FailureKind.REFUSED


class AlreadyServed(VirtagentError):
    """Another va-host process serves this VM."""

    kind = FailureKind.REFUSED


def check_name(name: str) -> str:
    """Return *name* if it may name a VM.

    Raises:
        BadName: it is empty, too long, or holds what is not a letter, a digit or one of ``._-``.
    """
    if _NAME.fullmatch(name):
        return name
    raise BadName(
        f"{name!r} cannot be a VM's name: use up to {NAME_MAX} letters, digits, '.', '_' and '-', "
        "a letter or digit first (choose one with --name)"
    )


@dataclass(frozen=True)
class VmPaths:
    """The files of one VM in the runtime directory."""

    name: str
    bridge: Path
    chardev: Path
    lock: Path
    events: Path


@dataclass(frozen=True)
class RuntimeDir:
    """The runtime directory; it need not exist yet."""

    path: Path

    @classmethod
    def find(cls, given: str | None = None, environ: Mapping[str, str] = os.environ) -> RuntimeDir:
        """Return the directory by rule 1.

        Args:
            given: the value of ``--runtime-dir``.
            environ: the environment.

        Raises:
            NotThere: nothing of rule 1 is set, and the user is not root.
        """
        # systemd gives a colon-separated list if the unit has several RuntimeDirectory= (systemd.exec(5)).
        by_systemd = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        chosen = given or environ.get("VIRTAGENT_RUNTIME_DIR") or by_systemd
        if chosen:
            # Absolute, because the same path is told to QEMU, which has its own working directory.
            return cls(Path(chosen).absolute())
        if os.geteuid() == 0:
            return cls(Path("/run/virtagent"))
        if xdg := environ.get("XDG_RUNTIME_DIR"):
            return cls(Path(xdg, "virtagent"))
        raise NotThere(
            "no runtime directory: $XDG_RUNTIME_DIR is not set; give --runtime-dir DIR "
            "or set $VIRTAGENT_RUNTIME_DIR"
        )

    def create(self) -> None:
        """Make the directory, mode 0700, unless it exists.

        Raises:
            Forbidden: it cannot be made, or others may write to it (they could replace a socket).
            NotThere: the path is not a directory.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = self.path.stat().st_mode
        except FileExistsError:
            raise NotThere(f"runtime directory {self.path}: it is not a directory") from None
        except OSError as error:
            raise Forbidden(
                f"runtime directory {self.path}: {error.strerror}; choose another with --runtime-dir"
            ) from error
        if mode & 0o022:
            raise Forbidden(
                f"runtime directory {self.path}: others may write to it; run: chmod 700 {self.path}"
            )

    def vm(self, name: str) -> VmPaths:
        """Return the paths of a VM.

        Raises:
            BadName: the name may not be used, or a socket's path would be longer than unix sockets allow.
        """
        check_name(name)
        paths = VmPaths(
            name,
            self.path / (name + BRIDGE_SUFFIX),
            self.path / (name + CHARDEV_SUFFIX),
            self.path / (name + LOCK_SUFFIX),
            self.path / (name + EVENTS_SUFFIX),
        )
        # The bridge's socket is made under a longer name first (private_socket).
        longest = max(paths.bridge.with_name(f".{paths.bridge.name}.{_PID}"), paths.chardev, key=_length)
        if (length := _length(longest)) > SOCKET_PATH_MAX:
            raise BadName(
                f"{longest}: {length} bytes are too long for a unix socket (at most {SOCKET_PATH_MAX}); "
                "choose a shorter --runtime-dir or --name"
            )
        return paths

    def attached(self) -> list[str]:
        """Return the names of the VMs whose bridge accepts connections, sorted.

        Raises:
            Forbidden: the directory cannot be read.
        """
        try:
            files = [file for file in os.listdir(self.path) if file.endswith(BRIDGE_SUFFIX)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise Forbidden(
                f"runtime directory {self.path}: {error.strerror}; are you the right user?"
            ) from error
        return sorted(file.removesuffix(BRIDGE_SUFFIX) for file in files if _accepts(self.path / file))


@contextlib.contextmanager
def lock(paths: VmPaths) -> Iterator[None]:
    """Hold the lock of a VM's name: of two va-host processes for one name, one gets it.

    The kernel drops it when the process dies, however it dies.

    Raises:
        AlreadyServed: another process holds it; the message names its pid.
    """
    file = _open_locked(paths)
    try:
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        paths.lock.unlink(missing_ok=True)
        os.close(file)


def _open_locked(paths: VmPaths) -> int:
    while True:
        file = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between our open and our flock: then this lock is
            # on a file nobody else will ever find.
            if _is_file_at(file, paths.lock):
                return file
        except BlockingIOError:
            holder = os.read(file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            raise AlreadyServed(
                f"VM '{paths.name}' is served by another va-host (pid {holder}); "
                f"end that one with 'va-host detach {paths.name}', or choose another --name"
            ) from None
        os.close(file)


def _is_file_at(file: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def _length(path: Path) -> int:
    return len(os.fsencode(path))


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        # Non-blocking: a service that is too busy to accept is there all the same (EAGAIN).
        probe.setblocking(False)
        try:
            return probe.connect_ex(os.fspath(path)) in (0, errno.EAGAIN)
        except OSError:  # Longer than any path we made, so none of ours.
            return False
