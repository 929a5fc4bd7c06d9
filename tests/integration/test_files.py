"""`va-host cp`, `ls`, `stat`, `rm` and `mkdir` with a real va-guest and a real va-host between them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clilab import run_on_terminal
from tests.integration.hostilelab import (
    PYTHON_PATH,
    Peer,
    Process,
    in_thread,
    listening,
    va_guest,
    va_host,
    wait_until,
)
from virtagent_host.runtime import RuntimeDir
from virtagent_protocol import xmlrpc
from virtagent_protocol.messages import Response, StreamData, encode
from virtagent_protocol.session import Role
from virtagent_protocol.trees import records
from virtagent_protocol.trees.entries import Entry
from virtagent_protocol.trees.records import Kind
from virtagent_protocol.values import Value

#: Seconds for any command here; a copy of the largest file takes a few.
DEADLINE = 120.0
#: Bytes of a file that is long under way: many times what is buffered on it.
LONG = 400 << 20
MIB = 1 << 20


class Lab:
    """A VM named demo, its va-host, and ways to run commands."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = RuntimeDir(directory / "run")
        self.runtime.create()
        self.host: Process
        self.guest: Process

    @property
    def environ(self) -> dict[str, str]:
        paths = {"PYTHONPATH": PYTHON_PATH, "VIRTAGENT_RUNTIME_DIR": str(self.runtime.path)}
        return {**os.environ, **paths, "LC_ALL": "C.UTF-8", "TERM": "xterm"}

    def start(self, *arguments: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command; its output goes to pipes."""
        return subprocess.Popen(
            [sys.executable, "-m", "virtagent_host.cli", *arguments],
            env=self.environ,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, *arguments: str | bytes, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """Run a command; return its status, stdout and stderr."""
        process = self.start(*arguments, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=DEADLINE)
        return process.returncode, out, err.decode()

    def succeed(self, *arguments: str | bytes, stdin: bytes = b"") -> bytes:
        status, out, err = self.run(*arguments, stdin=stdin)
        assert (status, err) == (0, ""), err
        return out

    def fail(self, status: int, *arguments: str | bytes) -> str:
        found, out, err = self.run(*arguments)
        assert (found, out) == (status, b""), err
        return err

    def cp(self, *arguments: str | bytes) -> Any:
        """Copy and return the JSON that it prints."""
        return json.loads(self.succeed("cp", "--json", *arguments))

    def part_grows(self, target: Path, size: int) -> Callable[[], bool]:
        """Return a condition: so much of a file has arrived under its temporary name."""
        part = target.parent / f".{target.name}.va-part"
        return lambda: part.exists() and part.stat().st_size >= size


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    channel = tmp_path / "channel"
    with va_guest(tmp_path, channel) as lab.guest:
        wait_until(channel.exists, lab.guest)
        with va_host(lab.runtime, "demo", channel) as lab.host:
            lab.succeed("wait", "demo", "--until", "ready")
            yield lab


def long_file(path: Path, size: int = LONG) -> Path:
    """Make a file that is long, of zeros that are on the disk, with something at both ends."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        file.write(os.urandom(4096))
        file.seek(size - 4096)
        file.write(os.urandom(4096))
    return path


def there(path: Path | bytes) -> str | bytes:
    """Return a path as one in the guest."""
    return b"demo:" + path if isinstance(path, bytes) else f"demo:{path}"


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", "-s", one, other], check=False).returncode == 0


def same_trees(one: Path, other: Path) -> None:
    subprocess.run(["diff", "-r", "--no-dereference", str(one), str(other)], check=True)


# --- Copies ------------------------------------------------------------------------------------------


def test_a_file_goes_there_and_back_with_its_digest_mode_and_time(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(5 * MIB + 3))
    source.chmod(0o640)
    os.utime(source, ns=(10**18 + 7, 10**18 + 7))
    (tmp_path / "directory").mkdir()
    told = lab.cp("--digest", "sha256", str(source), there(tmp_path / "directory"))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert told["digest"] == {"name": "sha256", "value": digest}
    assert (told["entries"], told["bytes"], told["failed"]) == (1, 5 * MIB + 3, 0)
    told = lab.cp("--digest", "sha256", there(tmp_path / "directory" / "source"), str(tmp_path / "back"))
    assert told["digest"]["value"] == digest
    for copy in (tmp_path / "directory" / "source", tmp_path / "back"):
        assert same(source, copy)
        assert (copy.stat().st_mode, copy.stat().st_mtime_ns) == (source.stat().st_mode, 10**18 + 7)
    assert lab.succeed("cp", there(source), str(tmp_path / "directory")) == b""


def test_stdin_and_stdout_are_files_too(lab: Lab, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    lab.succeed("cp", "-", there(tmp_path / "x"), stdin=data)
    assert (tmp_path / "x").read_bytes() == data
    assert lab.succeed("cp", there(tmp_path / "x"), "-") == data
    assert lab.succeed("cp", there(Path("/proc/self/comm")), "-") != b""
    assert lab.succeed("cp", "-", there(tmp_path / "empty")) == b""
    assert (tmp_path / "empty").read_bytes() == b""


def make_tree(root: Path) -> bytes:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "empty").write_bytes(b"")
    (root / "a" / "b" / "Datei ä\n").write_bytes(os.urandom(70_000))
    (root / "link").symlink_to("a/../nowhere")
    weird = os.fsencode(root) + b"/\xff\xfe"
    os.mkdir(weird)
    with open(weird + b"/\x1b[31m\xe4", "wb") as file:
        file.write(b"weird")
    (root / "a" / "b").chmod(0o700)
    os.utime(root / "a", ns=(10**18, 10**18))
    return weird


def test_trees_go_both_ways_with_links_and_names_of_any_bytes(lab: Lab, tmp_path: Path) -> None:
    weird = make_tree(tmp_path / "tree")
    os.mkfifo(tmp_path / "tree" / "fifo")
    status, out, err = lab.run("cp", "-r", str(tmp_path / "tree"), there(tmp_path / "there"))
    assert (status, out, err) == (0, b"", "fifo: a FIFO: left out\n")
    (tmp_path / "tree" / "fifo").unlink()
    told = lab.cp("-r", there(tmp_path / "there"), str(tmp_path / "back"))
    assert (told["entries"], told["errors"], told["notes"]) == (8, [], [])
    for copy in ("there", "back"):
        same_trees(tmp_path / "tree", tmp_path / copy)
        assert os.readlink(tmp_path / copy / "link") == "a/../nowhere"
        assert (tmp_path / copy / "a").stat().st_mtime_ns == 10**18
        assert (tmp_path / copy / "a" / "b").stat().st_mode & 0o777 == 0o700
    # Into a directory that is there, and by a path that is not UTF-8.
    lab.succeed("cp", "-r", there(weird), str(tmp_path / "back"))
    assert os.listdir(os.fsencode(tmp_path / "back") + b"/\xff\xfe") == [b"\x1b[31m\xe4"]
    lab.succeed("cp", weird + b"/\x1b[31m\xe4", there(os.fsencode(tmp_path) + b"/\xe9"))
    with open(os.fsencode(tmp_path) + b"/\xe9", "rb") as file:
        assert file.read() == b"weird"


def test_a_large_sparse_file_stays_sparse_and_takes_no_time(lab: Lab, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(20 << 30)
        file.write(b"data")
        file.truncate(40 << 30)
    begin = time.monotonic()
    lab.succeed("cp", str(tmp_path / "sparse"), there(tmp_path / "there"))
    lab.succeed("cp", there(tmp_path / "there"), str(tmp_path / "back"))
    assert time.monotonic() - begin < 30  # reading 40 GiB of zeros takes longer
    for copy in ("there", "back"):
        status = (tmp_path / copy).stat()
        assert (status.st_size, status.st_blocks * 512 < MIB) == (40 << 30, True)
        with (tmp_path / copy).open("rb") as file:
            file.seek((20 << 30) - 2)
            assert file.read(8) == b"\0\0data\0\0"


def test_ten_thousand_small_files_go_in_acceptable_time(lab: Lab, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(100):
        (tree / str(number)).mkdir(parents=True)
        for name in range(100):
            (tree / str(number) / str(name)).write_bytes(b"x" * (number + name))
    begin = time.monotonic()
    told = lab.cp("-r", str(tree), there(tmp_path / "there"))
    assert told["entries"] == 10_101
    assert time.monotonic() - begin < 100  # 10 s on a machine at rest; each is flushed
    same_trees(tree, tmp_path / "there")
    told = lab.cp("-rT", "--resume", str(tree), there(tmp_path / "there"))
    assert (told["kept"], told["bytes"]) == (10_000, 0)


# --- What goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_copy_that_is_cut_leaves_nothing_half_and_can_be_gone_on_with(
    lab: Lab, tmp_path: Path, way: str, resume: bool
) -> None:
    source, target = long_file(tmp_path / "source"), tmp_path / "target"
    ends = [str(source), there(target)] if way == "up" else [there(source), str(target)]
    process = lab.start("cp", *ends)
    wait_until(lab.part_grows(target, random.randrange(MIB, LONG // 8)), lab.host)
    process.kill()
    process.communicate()
    assert not target.exists()
    part = target.parent / ".target.va-part"

    def settled() -> bool:
        size = part.stat().st_size
        time.sleep(0.1)
        return part.stat().st_size == size

    wait_until(settled, lab.host)
    told = lab.cp(*(["--resume"] if resume else []), *ends)
    assert told["failed"] == 0
    assert same(source, target)
    assert not part.exists()


def cut_by(lab: Lab, tmp_path: Path, cut: Callable[[], None], way: str) -> tuple[int, str]:
    source, target = long_file(tmp_path / "source"), tmp_path / "target"
    ends = [str(source), there(target)] if way == "up" else [there(source), str(target)]
    process = lab.start("cp", *ends)
    wait_until(lab.part_grows(target, MIB), lab.guest)
    cut()
    _, err = process.communicate(timeout=DEADLINE)
    assert not target.exists()
    return process.returncode, err.decode()


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_va_host_that_is_killed_ends_the_copy_with_a_clear_error(
    lab: Lab, tmp_path: Path, way: str
) -> None:
    status, err = cut_by(lab, tmp_path, lambda: lab.host.kill(), way)
    assert (status, err) == (
        6,
        "va-host: broken: the transfer was cut: va-host has ended, or was detached\n",
    )


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_guest_that_is_killed_ends_the_copy_with_the_reason(lab: Lab, tmp_path: Path, way: str) -> None:
    status, err = cut_by(lab, tmp_path, lambda: lab.guest.kill(), way)
    assert status == 6
    assert err.startswith("va-host: broken: the transfer was cut: ")
    assert "without a reason" not in err


def test_a_copy_that_is_stuck_stalls_nothing_else(lab: Lab, tmp_path: Path) -> None:
    source = long_file(tmp_path / "source")
    stuck = [lab.start("cp", there(source), str(tmp_path / f"stuck{number}")) for number in range(3)]
    for number, process in enumerate(stuck):
        wait_until(lab.part_grows(tmp_path / f"stuck{number}", MIB), lab.guest)
        process.send_signal(signal.SIGSTOP)
    lab.succeed("ping", "demo")
    (tmp_path / "small").write_bytes(b"x" * MIB)
    lab.succeed("cp", there(tmp_path / "small"), str(tmp_path / "copy"))
    assert same(tmp_path / "small", tmp_path / "copy")
    for process in stuck:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
    # All that was opened for them is closed.
    wait_until(lambda: lab.guest.log.count("ended early") == 3, lab.guest)


def test_each_failure_has_its_status_and_names_the_path(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    file, directory = str(tmp_path / "file"), str(tmp_path / "directory")
    missing = tmp_path / "missing"
    assert f"{missing}: No such file or directory" in lab.fail(1, "cp", there(missing), file)
    assert f"{missing}: No such file or directory" in lab.fail(1, "cp", str(missing), there(tmp_path / "x"))
    assert "copy it recursively (-r)" in lab.fail(1, "cp", there(tmp_path / "directory"), file)
    assert "copy it recursively (-r)" in lab.fail(1, "cp", directory, there(tmp_path / "x"))
    assert "No such file or directory" in lab.fail(1, "cp", file, there(missing / "x"))
    assert "a character device" in lab.fail(1, "cp", file, there(Path("/dev/null")))
    assert "a character device" in lab.fail(1, "cp", there(Path("/dev/zero")), file)
    assert "a directory is there" in lab.fail(1, "cp", "-T", there(tmp_path / "file"), directory)
    assert "must be absolute" in lab.fail(2, "cp", file, "demo:x")
    assert "both are local" in lab.fail(2, "cp", file, file)
    assert "both are in guests" in lab.fail(2, "cp", there(tmp_path), there(tmp_path))
    assert "no VM named 'other'" in lab.fail(3, "cp", file, "other:/tmp/x")
    assert "No such file" in lab.fail(1, "ls", there(missing))
    assert "No such file" in lab.fail(1, "stat", there(missing))
    assert "recursively" in lab.fail(1, "rm", there(tmp_path / "directory"))
    assert "File exists" in lab.fail(1, "mkdir", there(tmp_path / "file"))
    status, _, err = lab.run("cp", "--json", there(missing), file)
    assert (status, json.loads(err)["error"]["kind"]) == (1, "refused")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_no_reader_of_stdout_is_no_error_of_the_guest(lab: Lab, tmp_path: Path) -> None:
    process = lab.start("cp", there(long_file(tmp_path / "source")), "-")
    assert process.stdout is not None
    assert process.stdout.read(1000)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(DEADLINE) == 141


# --- ls, stat, mkdir, rm -----------------------------------------------------------------------------


def test_directories_are_listed_whole_and_their_names_cannot_act(lab: Lab, tmp_path: Path) -> None:
    root = tmp_path / "listed"
    root.mkdir()
    for number in range(2500):
        (root / f"{number:04}").touch()
    names = lab.succeed("ls", there(root)).splitlines()
    assert names == [b"%04d" % number for number in range(2500)]
    make_tree(tmp_path / "tree")
    entries = json.loads(lab.succeed("ls", "--json", there(tmp_path / "tree")))
    assert [entry["name"] for entry in entries] == ["a", "link", {"base64": "//4="}]
    assert [entry["type"] for entry in entries] == ["directory", "symlink", "directory"]
    assert entries[1]["target"] == "a/../nowhere"
    assert b" link -> a/../nowhere\n" in lab.succeed("ls", "-l", there(tmp_path / "tree"))
    weird = os.fsencode(tmp_path / "tree") + b"/\xff\xfe"
    assert lab.succeed("ls", there(weird)) == b"\x1b[31m\xe4\n"
    command = [sys.executable, "-m", "virtagent_host.cli", "ls", os.fsdecode(there(weird))]
    seen, status = run_on_terminal(command, lab.environ, [])
    assert (seen, status) == ("\\x1b[31m\\xe4\n", 0)


def test_directories_are_made_and_trees_removed_without_following_links(lab: Lab, tmp_path: Path) -> None:
    lab.succeed("mkdir", there(tmp_path / "a"))
    lab.succeed("mkdir", "-p", there(tmp_path / "a" / "b" / "c"))
    lab.succeed("mkdir", "-p", there(tmp_path / "a" / "b" / "c"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (tmp_path / "a" / "b" / "link").symlink_to(outside)
    (tmp_path / "a" / "b" / "file").touch()
    assert (
        json.loads(lab.succeed("stat", "--json", there(tmp_path / "a" / "b" / "link")))["type"] == "symlink"
    )
    followed = json.loads(lab.succeed("stat", "-L", "--json", there(tmp_path / "a" / "b" / "link")))
    assert followed["type"] == "directory"
    assert json.loads(lab.succeed("rm", "-r", "--json", there(tmp_path / "a"))) == {"removed": 5}
    assert (outside / "precious").exists()
    assert not (tmp_path / "a").exists()


# --- A hostile guest ---------------------------------------------------------------------------------


def hostile_read(peer: Peer, said: bytes) -> None:
    """Serve one read of a tree with these bytes, to whoever asks."""
    session = peer.greet()
    for request in peer.requests():
        name, params = xmlrpc.decode_call(request.body)
        result: Value = None
        if name == "va.hello":
            continue
        if name == "va.capabilities":
            methods: list[Value] = ["va.ping", "va.read_tree", "va.list"]
            result = {"agent": "x", "version": "1", "protocol": "1.0", "methods": methods}
        elif name == "va.list":
            entry: Value = {"name": "../../x", "type": "\x9b31m"}
            result = {"directory": True, "more": True, "entries": [entry]}
        elif name == "va.read_tree":
            result = {"type": "directory"}
        peer.say(encode(Response(request.tag, xmlrpc.encode_result(result), session)))
        if name == "va.read_tree":
            options = params[0]
            assert isinstance(options, dict)
            assert isinstance(options["stream"], int)
            peer.say(encode(StreamData(options["stream"], said, session)))


@pytest.mark.parametrize("trick", ["up", "through a link", "absolute", "nonsense"])
def test_a_hostile_guest_cannot_write_outside_of_the_target(tmp_path: Path, trick: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    file = encode_named("owned", b"owned")
    said = records.encode(Kind.START, digest="crc32") + Entry("directory", mode=0o755).encode()
    said += {
        "up": records.encode(Kind.ENTRY, type="file", name="../outside/owned", mode=0o755),
        "absolute": records.encode(Kind.ENTRY, type="file", name=f"{outside}/owned", mode=0o755),
        "through a link": Entry("symlink", b"d", target=os.fsencode(outside)).encode()
        + Entry("directory", b"d", mode=0o755).encode()
        + file
        + records.encode(Kind.LEAVE) * 2
        + records.encode(Kind.END, entries=1, bytes=5, errors=0),
        "nonsense": b"\xff" * 100,
    }[trick]
    lab = Lab(tmp_path)
    channel = tmp_path / "channel"
    with listening(channel) as listener, va_host(lab.runtime, "demo", channel) as lab.host:
        peer = Peer(listener.accept()[0], Role.GUEST)
        with in_thread(lambda: hostile_read(peer, said)):
            try:
                lab.succeed("wait", "demo", "--until", "ready")
                copy = ("cp", "-r", "--digest", "crc32", "demo:/x", str(tmp_path / "target"))
                status, _, err = lab.run(*copy)
                assert status in (1, 6), err
                assert list(outside.iterdir()) == []
                assert "\x9b" not in lab.run("ls", "demo:/")[2]
            finally:
                peer.hang_up()
        peer.close()


def encode_named(name: str, content: bytes) -> bytes:
    import zlib

    return (
        Entry("file", name.encode()).encode()
        + records.head(Kind.DATA, len(content))
        + content
        + records.encode(Kind.CLOSE, size=len(content), digest=f"{zlib.crc32(content):08x}")
    )
