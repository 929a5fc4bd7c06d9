"""`va-host exec`, `shell`, `jobs`, `attach-job` and `kill`, between a real va-guest and a real va-host."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.forwardlab import NAME, until_ready, va_host
from tests.integration.hostilelab import PYTHON_PATH, Process, va_guest
from virtagent_host.frontend.client import BridgeError, VmClient
from virtagent_host.runtime import RuntimeDir

#: Seconds for any command here.
DEADLINE = 60.0
MIB = 1 << 20


class Lab:
    """A VM, its va-host, and ways to run commands on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = RuntimeDir(directory / "run")
        self.runtime.create()
        self.guest: Process
        self.host: Process

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        paths = {"PYTHONPATH": PYTHON_PATH, "VIRTAGENT_RUNTIME_DIR": str(self.runtime.path)}
        return {**kept, **paths, "LC_ALL": "C.UTF-8", "TERM": "xterm"}

    def start(self, *arguments: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
        """Start a va-host command, with pipes unless told otherwise."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [sys.executable, "-m", "virtagent_host.cli", *arguments],
            env=self.environ,
            **{**pipes, **options},
        )

    def run(self, *arguments: str | bytes, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a va-host command; return its exit status, stdout and stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=DEADLINE)
        return process.returncode, out, err

    def exec(self, *arguments: str | bytes, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        return self.run("exec", NAME, *arguments, stdin=stdin)

    def client(self) -> VmClient:
        return VmClient.connect(self.runtime, NAME)

    def jobs(self) -> list[dict[str, Any]]:
        status, out, err = self.run("jobs", NAME, "--json")
        assert status == 0, err
        jobs: list[dict[str, Any]] = json.loads(out)["jobs"]
        return jobs

    def until_ended(self, job: int) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            found = [one for one in self.jobs() if one["id"] == job]
            if found[0]["state"] == "ended":
                return found[0]
        raise AssertionError(f"job {job} still runs")


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Lab]:
    lab = Lab(directory)
    channel = directory / "channel.sock"
    with va_guest(directory, channel) as lab.guest, va_host(lab.runtime, channel) as lab.host:
        until_ready(lab.runtime)
        yield lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """For tests that leave both ends as they found them."""
    with running(tmp_path_factory.mktemp("exec")) as lab:
        yield lab


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[Lab]:
    """For tests that break something."""
    with running(tmp_path) as lab:
        yield lab


def read_until(fd: int, wanted: bytes) -> bytes:
    """Return what comes up to *wanted*."""
    seen, deadline = b"", time.monotonic() + DEADLINE
    while wanted not in seen:
        assert select.select([fd], [], [], max(deadline - time.monotonic(), 0))[0], f"only {seen!r}"
        try:
            data = os.read(fd, 4096)
        except OSError:  # the terminal's other end is closed
            data = b""
        assert data, f"it has ended after {seen!r}"
        seen += data
    return seen


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.01)
                continue
        return
    raise AssertionError(f"process {pid} still runs")


def close(process: subprocess.Popen[bytes]) -> None:
    """Close our ends of its pipes."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


# --- As ssh does it ----------------------------------------------------------------------------------


def test_bytes_and_status_pass_through(lab: Lab) -> None:
    payload = bytes(range(256)) * 4000
    assert lab.exec("--", "cat", stdin=payload) == (0, payload, b"")
    assert lab.exec("--shell", "--", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert lab.exec("--shell", "--merge", "--", "echo out; echo err >&2") == (0, b"out\nerr\n", b"")
    assert lab.exec("--shell", "--", "kill -KILL $$") == (137, b"", b"")
    assert lab.exec("--deadline", "0.2", "--", "sleep", "100") == (124, b"", b"")


def test_arguments_come_as_they_are(lab: Lab) -> None:
    script = 'for word; do printf "%s|" "$word"; done'
    words = ["a b", "", "*", "$HOME", "ä", "\x1b[31m", "\n", "-t", "--"]
    expected = "".join(f"{word}|" for word in words).encode()
    assert lab.exec("--", "sh", "-c", script, "sh", *words) == (0, expected, b"")
    # Without --, what follows NAME is the program's.
    assert lab.exec("sh", "-c", script, "sh", "-t", "-u") == (0, b"-t|-u|", b"")
    assert lab.exec("--", "printf", "%s", b"\xff\xfe") == (0, b"\xff\xfe", b"")


def test_options_mean_what_they_say(lab: Lab, tmp_path: Path) -> None:
    options = ["-C", str(tmp_path), "-e", "A=1=2", "-e", "B=", "--limit", "files=77"]
    status, out, err = lab.exec(*options, "--shell", "--", 'pwd; echo "$A,$B"; ulimit -n')
    assert (status, out, err) == (0, f"{tmp_path}\n1=2,\n77\n".encode(), b"")
    if os.geteuid() == 0:
        assert lab.exec("-u", "daemon", "--", "id", "-un") == (0, b"daemon\n", b"")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--", "nosuchprogram"], 255, b"va-host: refused: no such program in the guest: nosuchprogram"),
        (["-u", "nosuchuser", "--", "true"], 255, b"va-host: refused: the guest has no user 'nosuchuser'"),
        (["-C", "/nosuch", "--", "true"], 255, b"working directory /nosuch: No such file"),
        (["--"], 2, b"say what to run"),
        (["a", "--", "b"], 2, b"unexpected argument before '--': a"),
        (["-t", "-d", "--", "true"], 2, b"no terminal"),
        (["-e", "A", "--", "true"], 2, b"--env needs NAME=VALUE"),
    ],
)
def test_failures_of_our_own_can_be_told(lab: Lab, arguments: list[str], status: int, words: bytes) -> None:
    code, out, err = lab.exec(*arguments)
    assert (code, out) == (status, b"")
    assert words in err


def test_an_unknown_vm_is_a_failure_of_our_own(lab: Lab) -> None:
    status, _, err = lab.run("exec", "nosuchvm", "--", "true")
    assert (status, err.startswith(b"va-host: not there: no VM named 'nosuchvm'")) == (255, True)


def test_ctrl_c_reaches_the_process(lab: Lab) -> None:
    traps = "trap 'echo int; exit 3' INT; trap 'echo term; exit 4' TERM"
    script = f"{traps}; echo ready; while :; do sleep 0.01; done"
    for number, said, status in ((signal.SIGINT, b"int\n", 3), (signal.SIGTERM, b"term\n", 4)):
        process = lab.start("exec", NAME, "--shell", "--", script)
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"ready\n")
        assert lab.jobs()[-1]["state"] == "running"
        process.send_signal(number)
        assert process.communicate(timeout=DEADLINE)[0] == said
        assert process.returncode == status


def test_a_closed_pipe_ends_the_program_as_at_home(lab: Lab) -> None:
    process = lab.start("exec", NAME, "--", "yes")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"y\n")
    process.stdout.close()
    assert process.wait(DEADLINE) == 141
    close(process)


def test_killing_the_command_hangs_the_program_up(lab: Lab, tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f"trap 'echo hup >{said}; exit' HUP; echo $$; while :; do sleep 0.01; done"
    process = lab.start("exec", NAME, "--shell", "--", script, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    pid = int(read_until(process.stdout.fileno(), b"\n"))
    process.kill()
    until_gone(pid)
    assert said.read_text() == "hup\n"
    process.communicate()


def test_killing_va_host_hangs_the_program_up_and_says_so(own_lab: Lab) -> None:
    script = "echo $$; while :; do sleep 0.01; done"
    process = own_lab.start("exec", NAME, "--shell", "--", script)
    assert process.stdout is not None
    pid = int(read_until(process.stdout.fileno(), b"\n"))
    own_lab.host.kill()
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 255
    assert b"va-host: broken: va-host closed the connection" in err
    until_gone(pid)


def test_the_loss_of_the_guest_is_told(own_lab: Lab) -> None:
    process = own_lab.start("exec", NAME, "--shell", "--", "echo $$; sleep 100")
    assert process.stdout is not None
    pid = int(read_until(process.stdout.fileno(), b"\n"))
    own_lab.guest.kill()
    _, err = process.communicate(timeout=DEADLINE)
    os.killpg(pid, signal.SIGKILL)
    assert process.returncode == 255
    assert b"va-host: broken: " in err


def test_a_gigabyte_passes_and_leaves_no_trace_in_memory(own_lab: Lab) -> None:
    size = 1024 * MIB
    own_lab.exec("--", "true")
    ends = (own_lab.guest, own_lab.host)
    before = [end.reset_peak() for end in ends]
    source = subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE)
    process = own_lab.start("exec", NAME, "--", "cat", stdin=source.stdout, stderr=None)
    assert source.stdout is not None
    source.stdout.close()
    assert process.stdout is not None
    digest, count = hashlib.sha256(), 0
    while data := process.stdout.read(MIB):
        count += len(data)
        digest.update(data)
    assert (process.wait(DEADLINE), source.wait(DEADLINE), count) == (0, 0, size)
    close(process)
    grown = [(end.peak - early) / MIB for end, early in zip(ends, before, strict=True)]
    assert max(grown) < 24, grown


def test_a_stuck_reader_stalls_only_itself(lab: Lab) -> None:
    stuck = lab.start("exec", NAME, "--", "yes", stdin=subprocess.DEVNULL)
    try:
        assert lab.exec("--", "echo", "hello") == (0, b"hello\n", b"")
        assert lab.run("ping", NAME)[0] == 0
    finally:
        stuck.kill()
        stuck.communicate()


# --- On a terminal -----------------------------------------------------------------------------------


class Typed:
    """A va-host command on a terminal of its own."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self.fd, self.slave = pty.openpty()
        termios.tcsetwinsize(self.fd, (30, 90))  # type: ignore[attr-defined,unused-ignore]
        self.before = termios.tcgetattr(self.slave)
        self.process = lab.start(
            *arguments, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True
        )

    def type(self, keys: bytes, until: bytes) -> bytes:
        os.write(self.fd, keys)
        return read_until(self.fd, until)

    def end(self) -> int:
        """Wait for the end, see that the terminal is as it was, and return the exit status."""
        status = self.process.wait(DEADLINE)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.fd)
        os.close(self.slave)
        return status


def test_a_terminal_is_a_real_one(lab: Lab) -> None:
    shell = Typed(lab, "exec", NAME, "-t", "-e", "PS1=ready> ", "--", "sh", "-i")
    read_until(shell.fd, b"ready> ")
    assert b"30 90 xterm\r\n" in shell.type(b"echo $(stty size) $TERM\n", b"xterm\r\n")
    termios.tcsetwinsize(shell.fd, (40, 120))  # type: ignore[attr-defined,unused-ignore]
    shell.process.send_signal(signal.SIGWINCH)
    deadline = time.monotonic() + DEADLINE
    while b"40 120" not in shell.type(b"stty size; echo d'o'ne\n", b"done\r\n"):
        assert time.monotonic() < deadline
    # Ctrl-C is a key there: it ends what runs on that terminal, not the shell, nor va-host.
    shell.type(b"echo s'tart'; sleep 100\n", b"start\r\n")
    time.sleep(0.2)
    shell.type(b"\x03", b"ready> ")
    os.write(shell.fd, b"exit 9\n")
    assert shell.end() == 9


def test_a_terminal_is_restored_when_va_host_dies(own_lab: Lab) -> None:
    shell = Typed(own_lab, "exec", NAME, "-t", "--shell", "--", "echo ready; sleep 100")
    read_until(shell.fd, b"ready")
    assert termios.tcgetattr(shell.slave) != shell.before
    own_lab.host.kill()
    assert shell.end() == 255


def test_shell_is_a_login_shell(lab: Lab) -> None:
    shell = Typed(lab, "shell", NAME)
    out = shell.type(b"echo [$0] [$HOME]; pwd; exit 3\n", f"[{os.path.expanduser('~')}]\r\n".encode())
    assert b"[" in out
    assert shell.end() == 3


@pytest.mark.parametrize("program", ["vim", "top"])
def test_programs_that_own_the_screen_work(lab: Lab, program: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed here; tests/guest has another look at such programs")
    if program == "vim":
        screen = Typed(lab, "exec", NAME, "-t", "--", "vim", "-u", "NONE", "-N", str(file))
        read_until(screen.fd, b"[New")
        screen.type(b"ihello\x1b", b"hello")
        os.write(screen.fd, b":wq\r")
    else:
        screen = Typed(lab, "exec", NAME, "-t", "--", "top", "-d", "0.2")
        read_until(screen.fd, b"PID")
        os.write(screen.fd, b"q")
    read_to_end(screen.fd)
    assert screen.end() == 0
    if program == "vim":
        assert file.read_text() == "hello\n"


def read_to_end(fd: int) -> None:
    """Read until nothing comes for a moment: a program that leaves the screen says goodbye to it."""
    while select.select([fd], [], [], 1.0)[0]:
        os.read(fd, 4096)


# --- Detached ----------------------------------------------------------------------------------------


def test_a_detached_job_outlives_va_host_and_is_followed_from_an_offset(own_lab: Lab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"echo first; while ! [ -e {go} ]; do sleep 0.01; done; echo second; echo err >&2; exit 5"
    status, out, _ = own_lab.exec("-d", "--shell", "--", script)
    assert status == 0
    job = int(out)
    follower = own_lab.start("attach-job", NAME, str(job))
    assert follower.stdout is not None
    read_until(follower.stdout.fileno(), b"first\n")
    follower.kill()
    follower.communicate()

    own_lab.host.kill()
    with va_host(own_lab.runtime, own_lab.directory / "channel.sock"):
        until_ready(own_lab.runtime)
        (described,) = own_lab.jobs()
        assert (described["state"], described["output"]["stdout"]) == ("running", {"begin": 0, "end": 6})
        go.touch()
        assert own_lab.run("attach-job", NAME, str(job), "--offset", "6") == (5, b"second\n", b"err\n")
        assert own_lab.until_ended(job)["code"] == 5
        status, out, _ = own_lab.run("jobs", NAME)
        assert b"exit 5" in out


def test_what_was_not_kept_is_told(lab: Lab) -> None:
    job = int(lab.exec("-d", "--", "head", "-c", str(2 * MIB), "/dev/zero")[1])
    lab.until_ended(job)
    status, out, err = lab.run("attach-job", NAME, str(job))
    assert (status, len(out)) == (0, MIB)
    assert err == b"va-host: 1048576 bytes of the output were not kept by the guest\n"


def test_a_job_is_killed(lab: Lab) -> None:
    result = json.loads(lab.exec("-d", "--json", "--", "sleep", "100")[1])
    assert lab.run("kill", NAME, str(result["id"]), "-s", "usr1") == (0, b"", b"")
    ended = lab.until_ended(result["id"])
    assert (ended["pid"], ended["signal"]) == (result["pid"], signal.SIGUSR1)
    assert lab.run("attach-job", NAME, str(result["id"]))[0] == 128 + signal.SIGUSR1
    status, _, err = lab.run("kill", NAME, str(result["id"]))
    assert (status, b"has ended" in err) == (1, True)


# --- On the bridge -----------------------------------------------------------------------------------


def test_short_commands_answer_with_their_output(lab: Lab) -> None:
    with lab.client() as client:

        def run(*argv: str, **arguments: object) -> Any:
            return client.execute("va_exec", {"argv": list(argv), **arguments}, timeout=DEADLINE)

        both = run("cat; echo err >&2; exit 3", shell=True, input="in")
        assert both == {"code": 3, "stdout": "in", "stderr": "err\n", "format": "utf8", "truncated": False}
        assert run("printf", "\\377")["stdout"] == "\ufffd"
        given = base64.b64encode(b"\0\xff").decode()
        assert run("cat", input=given, format="base64", merge=True) == {
            "code": 0,
            "stdout": given,
            "format": "base64",
            "truncated": False,
        }
        much = run("head", "-c", str(2 * MIB), "/dev/zero")
        assert (len(much["stdout"]), much["truncated"]) == (MIB, True)
        assert run("sleep", "100", deadline=0.1) == {
            "signal": 15,
            "core": False,
            "deadline": True,
            "stdout": "",
            "stderr": "",
            "format": "utf8",
            "truncated": False,
        }
        with pytest.raises(BridgeError, match=r"was not done within 0\.3 s"):
            run("sleep", "100", timeout=0.3)
        with pytest.raises(BridgeError, match="no such program"):
            run("nosuchprogram")
        for arguments, words in (
            ({"argv": "ls"}, "expected: array"),
            ({"argv": [1]}, "expected: array of strings"),
            ({"argv": ["ls"], "detach": 1}, "expected: boolean"),
            ({"argv": ["ls"], "env": []}, "expected: object"),
            ({"argv": ["ls"], "stdin-fd": "va_x"}, "has not been found"),
            ({"argv": ["ls"], "detach": True, "pty": {}}, "does not go with 'detach'"),
        ):
            with pytest.raises(BridgeError, match=words):
                client.execute("va_exec", arguments, timeout=DEADLINE)


def test_a_client_waits_for_what_it_is_attached_to(lab: Lab) -> None:
    reading, writing = os.pipe()
    with lab.client() as client:
        client.send_fd("va_out", writing)
        os.close(writing)
        given = {"argv": ["echo", "hello"], "stdout-fd": "va_out"}
        job = client.execute("va_exec", given, timeout=DEADLINE)["id"]
        assert client.execute("va_exec_wait", {"id": job}, timeout=DEADLINE) == {"code": 0}
        assert os.read(reading, 100) == b"hello\n"
        assert os.read(reading, 100) == b""
        with pytest.raises(BridgeError, match="attached to no job"):
            client.execute("va_exec_wait", {"id": job}, timeout=DEADLINE)
    os.close(reading)
