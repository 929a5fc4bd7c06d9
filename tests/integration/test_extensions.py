"""Extensions, with a real va-guest and a real va-host: offered, called, ended, and harmless when broken."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.forwardlab import NAME, Lab, lab
from tests.integration.hostilelab import ROOT, wait_until
from virtagent_host.frontend.client import BridgeError, VmClient
from virtagent_protocol.errors import CallTimeout, FailureKind

#: Seconds for anything here.
DEADLINE = 30.0

ECHO = """\
#!/bin/sh
# virtagent: Say what was given.
# param word: string
# param count: int = 3 - how many
# param ratio: number = 0.5
# param sure: boolean = false
# param items: array = []
# param options: object = {}
# param thing: any = null
# param note: string = null
# returns: object
printf '{"stdin": %s, "word": "%s", "items": %s, "note": "%s", "pwd": "%s", "method": "%s"}' \\
    "$(cat)" "$ARG_word" "$ARG_items" "${ARG_note-unset}" "$PWD" "$VIRTAGENT_METHOD"
"""

#: A process and its child, both of which ignore SIGTERM; it tells the child's number.
STUBBORN = """\
#!/bin/sh
# virtagent: Never end.
# param file: string
# timeout: 1
trap '' TERM
sleep 600 &
echo $! >"$ARG_file.new"
mv "$ARG_file.new" "$ARG_file"
wait
wait
"""


@dataclass
class Stage:
    """Two processes, and the directory of extensions of one of them."""

    lab: Lab
    directory: Path

    def write(self, name: str, text: str, mode: int = 0o755) -> Path:
        """Put a file into the directory, whole or not at all."""
        hidden, path = self.directory / f".{name}", self.directory / name
        hidden.write_text(text)
        hidden.chmod(mode)
        hidden.replace(path)
        return path

    @contextmanager
    def client(self) -> Iterator[VmClient]:
        with VmClient.connect(self.lab.runtime, NAME) as client:
            yield client

    def call(self, command: str, **arguments: object) -> Any:
        """Run a command on the bridge."""
        with self.client() as client:
            return client.execute(command, arguments, timeout=DEADLINE)

    def refusal(self, command: str, **arguments: object) -> BridgeError:
        """Run a command on the bridge that fails."""
        with pytest.raises(BridgeError) as caught:
            self.call(command, **arguments)
        return caught.value

    def va_host(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.lab.command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}"},
        )

    def succeed(self, *arguments: str, stdin: str = "") -> str:
        done = self.va_host(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def until_logged(self, text: str) -> None:
        wait_until(lambda: text in self.lab.guest.log, self.lab.guest)


@contextmanager
def staged(config: str = "") -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="extensions-") as name:
        directory = Path(name, "methods.d")
        directory.mkdir()
        with lab(config=f'[extensions]\ndirectory = "{directory}"\n{config}') as made:
            yield Stage(made, directory)


@pytest.fixture(scope="module")
def shared() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    yield shared
    for path in shared.directory.iterdir():
        path.unlink()
    assert shared.lab.guest.alive
    assert shared.lab.host.alive


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # nobody here waits for an orphan


def started(file: Path) -> int:
    """Return the number of `STUBBORN`'s child."""
    until(file.exists)
    return int(file.read_text())


def examples(name: str = "docs/extensions.md") -> dict[str, str]:
    """Return the files of extensions that a page shows, by name."""
    page = (ROOT / name).read_text()
    return dict(
        re.findall(r"`/etc/virtagent/methods\.d/([\w.]+)`[^`]*\n\n?```\w+\n(.*?)```", page, re.DOTALL)
    )


# --- What docs/extensions.md shows -------------------------------------------------------------------


def test_the_examples_of_the_page_do_what_it_says(stage: Stage, tmp_path: Path) -> None:
    files = examples()
    assert sorted(files) == ["df", "largest.py"]
    stage.write("df", files["df"])
    stage.write("largest.py", files["largest.py"], 0o644)
    for size, name in ((10, "small"), (3000, "big"), (200, "middle")):
        (tmp_path / name).write_bytes(bytes(size))

    assert stage.succeed("x", NAME).splitlines() == [
        'df [path: string = "/"] -> string',
        "    Say how full the file system is that a path is on.",
        "",
        "    path: any path on it",
        "largest directory: string [count: integer = 5] -> array",
        "    List the largest files of a directory.",
    ]
    assert stage.succeed("x", NAME, "df", "/proc").splitlines()[1].endswith(" /proc")
    shown = stage.succeed("x", NAME, "largest", f"directory={tmp_path}", "count=2", "--json")
    assert json.loads(shown) == [{"name": "big", "bytes": 3000}, {"name": "middle", "bytes": 200}]
    assert json.loads(stage.succeed("qmp", NAME, "va_x_largest", f"directory={tmp_path}")) == json.loads(
        stage.succeed("x", "largest", "--json-args", json.dumps({"directory": str(tmp_path)}), "--json")
    )


def test_the_readme_shows_the_same_examples() -> None:
    assert examples("README.md") == examples()


# --- Offered -----------------------------------------------------------------------------------------


def test_a_file_is_offered_at_once_changed_at_once_and_gone_at_once(stage: Stage) -> None:
    stage.write("it", "#!/bin/sh\n# virtagent: It.\necho 1")
    assert stage.call("va_x_it") == 1
    assert "va.x_it" in stage.call("va_capabilities")["methods"]
    assert {"name": "va_x_it"} in stage.call("query-commands")
    stage.write("it", "#!/bin/sh\n# virtagent: It.\n# param n: int\necho $ARG_n")
    assert stage.call("va_x_it", n=2) == 2
    (stage.directory / "it").unlink()
    refusal = stage.refusal("va_x_it", n=2)
    assert refusal.error_class == "CommandNotFound"
    assert "The command va_x_it has not been found" in str(refusal)
    assert "va.x_it" not in stage.call("va_capabilities")["methods"]
    assert {"name": "va_x_it"} not in stage.call("query-commands")


def test_a_file_with_an_error_is_told_with_its_line_until_it_is_mended(stage: Stage) -> None:
    stage.write("good", "#!/bin/sh\n# virtagent: It.\necho 1")
    bad = stage.write("bad.py", "def bad():\n    '''It.'''\n    return (\n", 0o644)
    assert stage.call("va_x_good") == 1
    stage.until_logged(f"no extension: {bad}:3: this is not Python")
    assert "has not been found" in str(stage.refusal("va_x_bad"))
    assert stage.succeed("x", NAME).splitlines()[0] == "good -> any"

    logged = stage.lab.guest.log.count(f"{bad}:3:")
    stage.lab.guest._process.send_signal(signal.SIGHUP)
    wait_until(lambda: stage.lab.guest.log.count(f"{bad}:3:") == logged + 1, stage.lab.guest)
    stage.write("bad.py", "def bad():\n    '''It.'''\n    return 2\n", 0o644)
    assert stage.call("va_x_bad") == 2


def test_the_guests_command_line_says_what_the_files_are(stage: Stage) -> None:
    def va_guest() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["python3", "-m", "virtagent_guest", "extensions", str(stage.directory)],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}"},
        )

    stage.write("it", "#!/bin/sh\n# virtagent: It.\n# returns: nil")
    done = va_guest()
    assert (done.returncode, done.stdout, done.stderr) == (0, "va.x_it() -> nil within 30 s\n    It.\n", "")
    bad = stage.write("bad", "#!/bin/sh\n# virtagent: It.\n# parm")
    done = va_guest()
    assert done.returncode == 1
    assert done.stderr.startswith(f"va-guest: {bad}:3: 'parm' is none of")


# --- Arguments ---------------------------------------------------------------------------------------


def test_an_executable_gets_its_arguments_complete(stage: Stage) -> None:
    stage.write("echo", ECHO)
    answer = stage.call("va_x_echo", word="$(reboot)", items=[1, None, {"a": 1.5}], ratio=2)
    assert answer == {
        "stdin": {
            "word": "$(reboot)",
            "count": 3,
            "ratio": 2.0,
            "sure": False,
            "items": [1, None, {"a": 1.5}],
            "options": {},
            "thing": None,
            "note": None,
        },
        "word": "$(reboot)",
        "items": [1, None, {"a": 1.5}],
        "note": "unset",
        "pwd": "/",
        "method": "va.x_echo",
    }


def test_a_python_function_gets_its_arguments_and_what_it_prints_is_no_result(stage: Stage) -> None:
    stage.write(
        "it.py",
        "import sys\ndef it(a: str, b: float = 1, *, c: list | None = None) -> list:\n"
        "    '''It.'''\n    print('printed')\n    return [a, b, c, __name__, sys.argv[0] == __file__]\n",
        0o644,
    )
    assert stage.call("va_x_it", a="ü\n\t", b=2, c=[1]) == ["ü\n\t", 2.0, [1], "va_x_it", True]
    assert stage.call("va_x_it", a="") == ["", 1.0, None, "va_x_it", True]
    stage.until_logged("va.x_it: printed")
    assert [path.name for path in stage.directory.iterdir()] == ["it.py"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "Parameter 'word' is missing"),
        ({"word": "x", "extra": 1}, "Parameter 'extra' is unexpected"),
        ({"word": 1}, "Invalid parameter type for 'word', expected: string"),
        ({"word": None}, "Invalid parameter type for 'word', expected: string"),
        ({"word": "x", "count": "3"}, "Invalid parameter type for 'count', expected: integer"),
        ({"word": "x", "count": True}, "Invalid parameter type for 'count', expected: integer"),
        ({"word": "x", "count": 2**63}, "Parameter 'count' must be a finite number"),
        ({"word": "x", "items": {}}, "Invalid parameter type for 'items', expected: array"),
        ({"word": "x", "options": []}, "Invalid parameter type for 'options', expected: object"),
        ({"word": "x", "sure": 0}, "Invalid parameter type for 'sure', expected: boolean"),
        ({"word": "x", "timeout": -1}, "Parameter 'timeout' must be at least 0"),
        ({"word": "\x1b"}, "XML cannot carry"),
        ({"word": "x" * 70000}, "more than 65536 bytes"),
        ({"word": "x", "thing": [2**70]}, "does not fit 64 bits"),
    ],
)
def test_wrong_arguments_are_refused_in_qemus_words_before_anything_runs(
    stage: Stage, tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    stage.write("echo", ECHO.replace("printf", f"touch {tmp_path}/ran; printf"))
    refusal = stage.refusal("va_x_echo", **arguments)
    assert refusal.kind is FailureKind.REFUSED
    assert words in str(refusal)
    assert not (tmp_path / "ran").exists()


def test_the_command_line_checks_arguments_too(stage: Stage) -> None:
    stage.write("echo", ECHO)
    done = stage.va_host("x", NAME, "echo")
    assert (done.returncode, done.stderr) == (1, "va-host: refused: Parameter 'word' is missing\n")
    done = stage.va_host("x", NAME, "echo", "a", "b")
    assert "Invalid parameter type for 'count', expected: integer" in done.stderr
    done = stage.va_host("x", NAME, "nothing")
    assert done.returncode == 1
    assert "the guest has no extension va_x_nothing" in done.stderr
    done = stage.va_host("x", NAME, "Bad/name")
    assert done.returncode == 1
    done = stage.va_host("x", NAME, "echo", "--json-args", "[]")
    assert (done.returncode, "must be a JSON object" in done.stderr) == (2, True)


def test_the_shell_completes_the_names_of_extensions(stage: Stage) -> None:
    for name in ("one", "other"):
        stage.write(name, "#!/bin/sh\n# virtagent: It.\n")

    def completed(line: str) -> list[str]:
        directory = str(stage.lab.runtime.path)
        words = {"COMP_WORDS": f"va-host {line}", "COMP_CWORD": str(line.count(" ") + 1)}
        shell = {"_VA_HOST_COMPLETE": "bash_complete", "VIRTAGENT_RUNTIME_DIR": directory}
        done = subprocess.run(
            [*stage.lab.command()[:3]],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}", **words, **shell},
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert completed("x ") == [NAME, "one", "other"]
    assert completed(f"x {NAME} ") == ["one", "other"]
    assert completed(f"x {NAME} ot") == ["other"]
    assert completed(f"x {NAME} one ") == []


def test_the_monitor_knows_extensions(stage: Stage) -> None:
    stage.write(
        "echo", "#!/bin/sh\n# virtagent: Say it.\n# param format: string\n# returns: text\necho $ARG_format"
    )
    lines = "va_x_echo 'two words'\nhelp va_x_echo\nva_x_other\n"
    done = stage.va_host("monitor", NAME, stdin=lines)
    assert done.returncode == 1
    first, *described = done.stdout.splitlines()
    assert first == "two words"
    assert described[:2] == ["va_x_echo format [timeout]", "Say it."]
    assert "the guest has no extension va_x_other" in done.stderr


# --- Ends --------------------------------------------------------------------------------------------


def test_at_its_timeout_all_of_its_processes_are_ended(stage: Stage, tmp_path: Path) -> None:
    stage.write("stubborn", STUBBORN)
    refusal = stage.refusal("va_x_stubborn", file=str(tmp_path / "pid"))
    assert "va.x_stubborn was not done within 1 s, and was ended" in str(refusal)
    assert is_gone(started(tmp_path / "pid"))


def test_at_the_callers_timeout_as_well(stage: Stage, tmp_path: Path) -> None:
    stage.write("stubborn", STUBBORN.replace("timeout: 1", "timeout: 600"))
    refusal = stage.refusal("va_x_stubborn", file=str(tmp_path / "pid"), timeout=1)
    assert refusal.kind is FailureKind.TIMED_OUT
    pid = started(tmp_path / "pid")
    until(lambda: is_gone(pid))


def test_when_the_caller_leaves_too(stage: Stage, tmp_path: Path) -> None:
    stage.write("stubborn", STUBBORN.replace("timeout: 1", "timeout: 600"))
    with stage.client() as client:
        with pytest.raises(CallTimeout):
            client.execute("va_x_stubborn", {"file": str(tmp_path / "pid")}, timeout=0.5)
        pid = started(tmp_path / "pid")
        assert not is_gone(pid)
    until(lambda: is_gone(pid))


def test_no_more_than_three_run_and_other_methods_are_not_held_up(stage: Stage, tmp_path: Path) -> None:
    stage.write("stubborn", STUBBORN.replace("timeout: 1", "timeout: 600"))
    clients, pids = [], []
    for number in range(3):
        clients.append(VmClient.connect(stage.lab.runtime, NAME))
        with pytest.raises(CallTimeout):
            clients[-1].execute("va_x_stubborn", {"file": str(tmp_path / str(number))}, timeout=0.01)
        pids.append(started(tmp_path / str(number)))
    refusal = stage.refusal("va_x_stubborn", file=str(tmp_path / "fourth"))
    assert refusal.kind is FailureKind.NOT_READY
    assert "3 extensions run already (va.x_stubborn, " in str(refusal)
    assert stage.call("va_viewfile", filepath="/proc/version")["content"].startswith("Linux")
    for client in clients:
        client.close()
    until(lambda: all(map(is_gone, pids)))
    stage.write("it", "#!/bin/sh\n# virtagent: It.\necho 1")
    until(lambda: stage.call("va_x_it") == 1)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo first >&2; echo 'no such \x1b[2Jthing' >&2; exit 3", "no such \\x1b[2Jthing (exit status 3)"),
        ("exit 1", "va.x_it failed: exit status 1"),
        ("kill -9 $$", "it was killed by signal 9"),
        ("echo words", "its result cannot be sent: it is not JSON"),
        ("echo 1e999", "XML-RPC has no inf"),
        ("echo NaN", "it holds NaN"),
        ("printf '\"\\\\u001b\"'", "XML cannot carry"),
        ("printf '\"\\\\ud800\"'", "XML cannot carry"),
        ("echo 99999999999999999999", "does not fit 64 bits"),
        ("printf '%0100000d' 0 | tr 0 [", "it is not JSON"),
        ("yes", "the result of va.x_it exceeds 1048576 bytes"),
        ("yes >&2", "was not done within 1 s"),
        ("exec sleep 60 <&- >&- 2>&-", "was not done within 1 s"),
    ],
)
def test_an_executable_that_fails_harms_only_its_call(stage: Stage, body: str, why: str) -> None:
    stage.write("it", f"#!/bin/sh\n# virtagent: It.\n# timeout: 1\n{body}\n")
    refusal = stage.refusal("va_x_it")
    assert refusal.kind is FailureKind.REFUSED
    assert why in str(refusal)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise ValueError('not so')", "ValueError: not so (exit status 1)"),
        ("return object()", "TypeError: Object of type object is not JSON serializable"),
        ("return 'text'", "it is string, and is declared as struct"),
        ("import os; os.kill(os.getpid(), 11)", "it was killed by signal 11"),
        ("import sys; sys.exit('bye')", "bye (exit status 1)"),
        ("return it()", "RecursionError"),
        ("import os; os._exit(0)", "it is nil, and is declared as struct"),
        ("while True: pass", "was not done within 1 s"),
    ],
)
def test_a_python_function_that_fails_harms_only_its_call(stage: Stage, body: str, why: str) -> None:
    stage.write("it.py", f"# timeout: 1\ndef it() -> dict:\n    '''It.'''\n    {body}\n", 0o644)
    refusal = stage.refusal("va_x_it")
    assert refusal.kind is FailureKind.REFUSED
    assert why in str(refusal)


def test_what_cannot_be_run_says_so(stage: Stage) -> None:
    stage.write("it", "#!/nonexistent/interpreter\n# virtagent: It.\n")
    assert "cannot be run: No such file or directory" in str(stage.refusal("va_x_it"))


def test_results_of_every_type_arrive(stage: Stage) -> None:
    stage.write("nil", "#!/bin/sh\n# virtagent: It.\n# returns: nil\n:")
    assert stage.call("va_x_nil") == {}
    stage.write("text", "#!/bin/sh\n# virtagent: It.\n# returns: text\nprintf ' a\\033[31m\\n\\377\\n\\n'")
    assert stage.call("va_x_text") == " a\\x1b[31m\n\\xff\n"
    stage.write("big", "#!/bin/sh\n# virtagent: It.\n# returns: text\nhead -c 1048576 /dev/zero | tr '\\0' x")
    assert stage.call("va_x_big") == "x" * 1048576
    stage.write("number", "#!/bin/sh\n# virtagent: It.\n# returns: number\necho 3")
    assert stage.call("va_x_number") == 3.0


def test_a_child_that_is_left_behind_does_not_keep_the_caller(stage: Stage) -> None:
    stage.write("it", "#!/bin/sh\n# virtagent: It.\nsleep 20 &\necho $!")
    begun = time.monotonic()
    pid = stage.call("va_x_it")
    assert time.monotonic() - begun < 10
    os.kill(pid, signal.SIGKILL)


def test_the_log_gets_the_end_of_what_is_said_on_stderr_and_no_more(stage: Stage) -> None:
    stage.write("it", "#!/bin/sh\n# virtagent: It.\nseq 100000 >&2")
    assert stage.call("va_x_it") == {}
    stage.until_logged("va.x_it: 100000")
    lines = re.findall(r"va\.x_it: (\d+)\n", stage.lab.guest.log)
    assert lines == [str(number) for number in range(99981, 100001)]


# --- Who may -----------------------------------------------------------------------------------------


def test_the_policy_blocks_extensions_by_their_names() -> None:
    with staged('[policy]\nblock-rpcs = ["va.x_secret"]\n') as stage:
        stage.write("secret", f"#!/bin/sh\n# virtagent: It.\ntouch {stage.directory}/.ran")
        stage.write("open", "#!/bin/sh\n# virtagent: It.\necho 1")
        refusal = stage.refusal("va_x_secret")
        assert refusal.kind is FailureKind.FORBIDDEN
        assert "block-rpcs" in str(refusal)
        assert not (stage.directory / ".ran").exists()
        assert stage.call("va_x_open") == 1
        assert stage.call("va_capabilities")["forbidden"] == ["va.x_secret"]
        assert "this agent has no method 'va.x_secret'" not in stage.lab.guest.log


def test_rules_know_extensions_by_pattern_and_an_empty_directory_turns_them_off(tmp_path: Path) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text('default = "deny"\n[[rule]]\nname = "ours"\naction = "allow"\nmethods = ["va.x_d*"]\n')
    with staged(f'[policy]\nfile = "{rules}"\n') as stage:
        stage.write("df", "#!/bin/sh\n# virtagent: It.\necho 1")
        stage.write("other", "#!/bin/sh\n# virtagent: It.\necho 1")
        assert stage.call("va_x_df") == 1
        assert stage.refusal("va_x_other").kind is FailureKind.FORBIDDEN
        assert stage.refusal("va_viewdmesg").kind is FailureKind.FORBIDDEN
    with lab(config='[extensions]\ndirectory = ""\n') as made:
        assert "has not been found" in str(Stage(made, tmp_path).refusal("va_x_df"))
