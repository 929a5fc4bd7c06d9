"""Real processes to be hostile to: a va-host, a va-guest, and what their users see of them meanwhile.

The hostile peer is a socket and a thread: it knows the protocol's bytes and keeps none of its rules.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.messages import Request, encode
from virtagent_protocol.reader import MessageReader
from virtagent_protocol.session import Hello, Role

ROOT = Path(__file__).parents[2]
PYTHON_PATH = os.pathsep.join([str(ROOT / "protocol"), str(ROOT)])
#: Seconds for anything to happen that must.
DEADLINE = 20.0
#: Seconds between two looks at a state that no event tells.
INTERVAL = 0.01
MIB = 1024 * 1024

#: What must never be printed or logged: control characters other than the newline, C1 ones included.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
#: What a hostile peer puts into every string: clear, title, colour, answerback, a forged line, bidi override.
ESCAPES = "\u009b2J\u009d0;owned\u009c\t\n<0>forged\u202egnp\u200b\u2028\x7f end"


class Process:
    """A child of the test with its log in a file."""

    def __init__(self, log: Path, module: str, *arguments: str) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": PYTHON_PATH},
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """All that was written to stdout and stderr."""
        return self._log.read_bytes().decode("utf-8", "surrogateescape")

    @property
    def log_size(self) -> int:
        return self._log.stat().st_size

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def reset_peak(self) -> int:
        """Forget the highest memory so far; return the present one, in bytes (proc(5), clear_refs)."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    @property
    def peak(self) -> int:
        """The highest resident memory since `reset_peak`, in bytes."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        match = re.search(rf"{name}:\s+(\d+) kB", status)
        assert match is not None
        return 1024 * int(match[1])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def va_host(runtime: RuntimeDir, name: str, channel: Path) -> Iterator[Process]:
    """Run `va-host attach --channel`, with its bridge served as soon as the block begins."""
    log = runtime.path / f"{name}.log"
    attach = ["--runtime-dir", str(runtime.path), "attach", "--name", name, "--channel", f"unix:{channel}"]
    process = Process(log, "virtagent_host.cli", *attach)
    try:
        wait_until(lambda: name in runtime.attached(), process)
        yield process
    finally:
        process.kill()


@contextmanager
def va_guest(directory: Path, channel: Path, kind: str = "unix-listen") -> Iterator[Process]:
    """Run `va-guest` on a socket."""
    config = directory / "guest.toml"
    config.touch()
    process = Process(
        directory / "guest.log", "virtagent_guest", "--config", str(config), "-c", kind, "-p", str(channel)
    )
    try:
        yield process
    finally:
        process.kill()


def wait_until(condition: Callable[[], object], process: Process) -> None:
    """Look until a condition holds; fail if it does not by `DEADLINE`, or the process ends."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert process.alive, process.log[-2000:]
        assert time.monotonic() < deadline, f"not so within {DEADLINE:g} s; the log: {process.log[-2000:]}"
        time.sleep(INTERVAL)


class Peer:
    """A hostile end of a link: says hello as it should, and then whatever it is told."""

    def __init__(self, sock: socket.socket, role: Role) -> None:
        self._sock = sock
        self._role = role
        self._reader = MessageReader()

    def say(self, data: bytes) -> bool:
        """Send these bytes, however long it takes; False if the connection has ended."""
        try:
            self._sock.sendall(data)
        except OSError:
            return False
        return True

    def say_all(self, said: Iterator[bytes]) -> None:
        """Say all that, then hang up."""
        for data in said:
            self.say(data)
        self.hang_up()

    def greet(self, epoch: str = "00000000000000b2", agent: str = "hostile") -> str:
        """Say hello, and return the session's id when the other end has told its own epoch."""
        self.say(hello(self._role, epoch, agent))
        name, params = xmlrpc.decode_call(next(self.requests()).body)
        assert name == "va.hello"
        other = Hello.from_value(params[0]).epoch
        host, guest = (epoch, other) if self._role is Role.HOST else (other, epoch)
        return f"{host}-{guest}"

    def requests(self) -> Iterator[Request]:
        """Yield the other end's requests until it hangs up."""
        while data := self._receive():
            yield from (event for event in self._reader.feed(data) if isinstance(event, Request))

    def drain(self) -> None:
        """Read, and forget, until the connection ends."""
        while self._receive():
            pass

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(65536)
        except OSError:
            return b""

    def hang_up(self) -> None:
        """End the connection, and with it whatever another thread does on it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()


def hello(role: Role, epoch: str, agent: str = "hostile", tag: str = "x", boot_id: str = "") -> bytes:
    """Return the bytes of a hello."""
    struct = Hello(role, epoch, agent, boot_id).to_value()
    return encode(Request(tag, xmlrpc.encode_call("va.hello", [struct])))


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a unix socket; remove it afterwards."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(1)
        sock.settimeout(DEADLINE)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def in_thread(*functions: Callable[[], None]) -> Iterator[None]:
    """Run functions beside the block; they must end when the block has."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


@contextmanager
def speaking(peer: Peer, said: Iterator[bytes], *, reads: bool) -> Iterator[None]:
    """Let a peer speak, from the begin of the block until its end; then it hangs up."""
    begun = threading.Event()

    def say() -> None:
        for data in said:
            begun.set()
            if not peer.say(data):
                break

    with in_thread(say, *([peer.drain] if reads else [])):
        assert begun.wait(DEADLINE)
        yield
        peer.hang_up()


def in_time(said: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """Yield what is said for some seconds, once at least."""
    yield next(said)
    ending = time.monotonic() + seconds
    while time.monotonic() < ending:
        yield next(said)


@dataclass
class Watch:
    """How long users waited for an answer: the longest, and how often they asked."""

    longest: float = 0.0
    asked: int = 0
    errors: list[str] = field(default_factory=list)

    def ask(self, client: VmClient, command: str) -> None:
        """Have a command executed and note how long it took."""
        begin = time.monotonic()
        try:
            client.execute(command, timeout=DEADLINE)
        except VirtagentError as error:
            self.errors.append(str(error))
        self.note(time.monotonic() - begin)

    def note(self, seconds: float) -> None:
        """Note how long an answer took."""
        self.longest = max(self.longest, seconds)
        self.asked += 1
