"""Events from a guest's programs to the host: real processes on both sides, killed on the way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from tests.integration.hostilelab import DEADLINE, Process, va_guest, va_host, wait_until
from virtagent_guest.events.sources.settings import NAMES
from virtagent_guest.local.client import Agent
from virtagent_host.frontend.client import VmClient
from virtagent_host.runtime import RuntimeDir

ROOT = Path(__file__).parents[2]
COUNT = 1000


class Lab:
    """An agent with its local socket; a runtime directory for the host's side."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.channel = directory / "channel"
        self.socket = directory / "guest.sock"
        self.runtime = RuntimeDir(directory / "run")
        self.runtime.create()
        config = f'[local]\nsocket = "{self.socket}"\n[events]\n{NO_SOURCES}'
        (directory / "guest.toml").write_text(config)
        paths = os.pathsep.join([str(ROOT / "protocol"), str(ROOT)])
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": paths,
            "VIRTAGENT_RUNTIME_DIR": str(self.runtime.path),
            "VIRTAGENT_SOCKET": str(self.socket),
            "LC_ALL": "C.UTF-8",
        }

    @contextmanager
    def agent(self) -> Iterator[Process]:
        """Run the agent; programs can connect when the block begins."""
        with va_guest(self.directory, self.channel) as process:
            wait_until(lambda: "listening on" in process.log, process)
            yield process

    @contextmanager
    def host(self) -> Iterator[Process]:
        """Run va-host for the VM demo."""
        with va_host(self.runtime, "demo", self.channel) as process:
            yield process

    def held(self) -> list[dict[str, Any]]:
        """Return all that the journal holds."""
        with VmClient.connect(self.runtime, "demo") as client:
            entries: list[dict[str, Any]] = []
            while True:
                since = entries[-1]["position"] if entries else 0
                more = client.execute("va_events", {"since": since, "count": 1000}, timeout=DEADLINE)[
                    "events"
                ]
                if not more:
                    return entries
                entries += more

    def run(self, module: str, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *args]
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environ,
            timeout=DEADLINE,
            check=False,
        )

    def notify(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.run("virtagent_guest", "notify", *args, stdin=stdin)

    @contextmanager
    def va_host(self, *args: str, stderr: Path) -> Iterator[IO[str]]:
        """Run a command of va-host that goes on; yield its stdout."""
        command = [sys.executable, "-m", "virtagent_host.cli", *args]
        with (
            stderr.open("w") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=self.environ, text=True
            ) as process,
        ):
            assert process.stdout is not None
            try:
                yield process.stdout
            finally:
                process.kill()


#: What this machine does meanwhile is no part of these tests.
NO_SOURCES = f"off = {json.dumps(list(NAMES))}\n"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_thousand_events_come_once_and_in_order_though_the_host_is_killed(lab: Lab, tmp_path: Path) -> None:
    follow = ["events", "demo", "--follow", "--since", "0", "--only", "tick", "--json", "--count", str(COUNT)]
    with (
        lab.agent() as guest,
        lab.va_host(*follow, stderr=tmp_path / "errors") as seen,
        Agent(str(lab.socket)) as agent,
    ):

        def tell(first: int, last: int) -> None:
            for n in range(first, last):
                agent.call("va.notify", "tick", {"n": n})

        with lab.host() as host:
            tell(0, 300)
            host.kill()
        # Away, and nobody tells the guest.
        tell(300, 600)
        with lab.host() as host:
            # Killed while it takes what has waited.
            tell(600, 650)
            host.kill()
        tell(650, 700)
        with lab.host() as host:
            wait_until(lambda: lab.held(), host)
            tell(700, COUNT)
            wait_until(lambda: ticks(lab.held())[-1:] == [COUNT - 1], host)
            held = lab.held()
            events = [json.loads(line) for line in seen]
    assert guest.log.count("internal error") == 0
    assert ticks(held) == list(range(COUNT))
    assert not [entry for entry in held if "lost" in entry]
    assert [event["data"]["data"]["n"] for event in events] == list(range(COUNT))
    assert "waiting for va-host" in (tmp_path / "errors").read_text()


def ticks(entries: list[dict[str, Any]]) -> list[int]:
    return [entry["data"]["n"] for entry in entries if entry.get("event") == "tick"]


def test_events_outlive_an_agent_that_is_killed_before_the_host_came(lab: Lab) -> None:
    with lab.agent() as guest:
        for n in range(3):
            assert lab.notify("tick", f"n={n}").returncode == 0
        guest.kill()
    with lab.agent(), lab.host() as host:
        assert lab.notify("tick", "n=3").returncode == 0
        wait_until(lambda: len(ticks(lab.held())) == 4, host)
        assert ticks(lab.held()) == [0, 1, 2, 3]
        assert len({entry["log"] for entry in lab.held()}) == 1


def test_who_told_it_comes_with_an_event_and_cannot_be_forged(lab: Lab) -> None:
    with lab.agent(), lab.host() as host:
        assert lab.notify("who", 'caller={"uid": 4711}', "uid=4711").returncode == 0
        wait_until(lambda: any(entry["event"] == "who" for entry in lab.held()), host)
        (event,) = [entry for entry in lab.held() if entry["event"] == "who"]
        assert (event["caller"]["uid"], event["caller"]["gid"]) == (os.getuid(), os.getgid())
        assert event["caller"]["pid"] > 1
        assert event["data"] == {"caller": {"uid": 4711}, "uid": 4711}


def test_what_notify_says_and_ends_with(lab: Lab) -> None:
    nobody = lab.notify("tick")
    assert nobody.returncode == 3
    assert f"{lab.socket}: the agent is not there" in nobody.stderr
    for wrong, why in (
        (["Tick"], "cannot be an event's name"),
        (["tick", "n"], "is not KEY=VALUE"),
        (["tick", "n=1", "n=2"], "two values for 'n'"),
        (["tick", "--json", "[1]"], "not a JSON object"),
        (["tick", "text=" + "x" * 9000], "at most 8192"),
    ):
        refused = lab.notify(*wrong)
        assert refused.returncode == 2, refused
        assert why in refused.stderr
    with lab.agent(), lab.host() as host:
        told = lab.notify(
            "tick", "n=1", "--json", "-", "word=NaN", 'id="1"', stdin='{"list": [1, "\\u001b"]}'
        )
        assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
        wait_until(lambda: any(entry["event"] == "tick" for entry in lab.held()), host)
        (event,) = [entry for entry in lab.held() if entry["event"] == "tick"]
        assert event["data"] == {"list": [1, "\x1b"], "n": 1, "word": "NaN", "id": "1"}


def test_a_command_of_the_host_is_run_for_each_event_in_order_without_a_shell(
    lab: Lab, tmp_path: Path
) -> None:
    script = (
        "import json, os, sys\n"
        "event = json.load(sys.stdin)\n"
        "facts = {name: os.environ[f'VA_EVENT_{name}'] for name in ('NAME', 'VM', 'DATA_WORD', 'UID')}\n"
        "print(json.dumps([facts, event['data']['data'], sys.argv[1:]]), flush=True)\n"
        "sys.exit(event['data']['data']['n'] % 2)\n"
    )
    tricky = "$(touch /tmp/owned); `id` \x1b[2J"
    with lab.agent(), lab.host() as host:
        with Agent(str(lab.socket)) as agent:
            for n in range(3):
                agent.call("va.notify", "job.done", json.dumps({"n": n, "word": tricky}))
                agent.call("va.notify", "other", {})
        wait_until(lambda: len(lab.held()) >= 6, host)
        words = ["on", "job.*", "--since", "0", "--count", "3", "--", sys.executable, "-c", script, "$HOME"]
        done = lab.run("virtagent_host.cli", *words)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [data["n"] for _, data, _ in runs] == [0, 1, 2]
    facts, data, arguments = runs[0]
    assert facts == {
        "NAME": "job.done",
        "VM": "demo",
        "DATA_WORD": tricky.replace("\x1b", "\\x1b"),
        "UID": str(os.getuid()),
    }
    assert data["word"] == tricky
    assert arguments == ["$HOME"]
    assert done.returncode == 1
    assert "demo: job.done: " in done.stderr
    assert "ended with status 1" in done.stderr


def test_a_reaction_that_is_started_again_goes_on_where_it_was(lab: Lab, tmp_path: Path) -> None:
    state = tmp_path / "state"
    show = ["sh", "-c", "echo $VA_EVENT_DATA_N"]
    words = ["on", "tick", "demo", "--state", str(state), "--count", "2", "--since", "0", "--", *show]
    with lab.agent(), lab.host() as host, Agent(str(lab.socket)) as agent:
        for n in range(4):
            agent.call("va.notify", "tick", {"n": n})
        wait_until(lambda: len(ticks_of(lab)) == 4, host)
        assert lab.run("virtagent_host.cli", *words).stdout.split() == ["0", "1"]
        # --since is for the first time only.
        assert lab.run("virtagent_host.cli", *words).stdout.split() == ["2", "3"]
        state.write_text("[]")
        broken = lab.run("virtagent_host.cli", *words)
        assert broken.returncode == 6
        assert "remove it to begin anew" in broken.stderr


def test_a_command_that_takes_too_long_is_ended_and_the_next_event_comes(lab: Lab) -> None:
    with lab.agent(), lab.host() as host:
        for _ in range(2):
            assert lab.notify("tick").returncode == 0
        wait_until(lambda: len(ticks_of(lab)) == 2, host)
        words = [
            "on",
            "tick",
            "demo",
            "--since",
            "0",
            "--count",
            "2",
            "--timeout",
            "0.2",
            "--",
            "sleep",
            "60",
        ]
        done = lab.run("virtagent_host.cli", *words)
    assert done.returncode == 1
    assert done.stderr.count("was not done within 0.2 s") == 2


def ticks_of(lab: Lab) -> list[dict[str, Any]]:
    return [entry for entry in lab.held() if entry.get("event") == "tick"]


def test_what_a_guest_says_is_shown_to_people_in_a_line(lab: Lab) -> None:
    with lab.agent(), lab.host() as host:
        assert lab.notify("tick", "text=two\nlines\x1b[31m", "n=1").returncode == 0
        wait_until(lambda: ticks_of(lab), host)
        shown = lab.run(
            "virtagent_host.cli", "events", "demo", "--since", "0", "--only", "tick", "--count", "1"
        )
    line = shown.stdout.split(" ", 1)[1]
    assert line.startswith('tick text="two\\nlines\\u001b[31m" n=1  #')
    assert f"(uid {os.getuid()}, pid " in line


def test_an_agent_serves_on_when_the_local_socket_cannot_be_made(lab: Lab) -> None:
    lab.socket.write_text("not a socket")
    with lab.agent() as guest, lab.host() as host:
        wait_until(lambda: "demo: attached" in host.log, host)
        assert lab.run("virtagent_host.cli", "wait", "demo", "--until", "ready").returncode == 0
        assert "programs of the guest cannot reach the agent" in guest.log
        assert lab.socket.read_text() == "not a socket"


def test_the_example_of_the_documentation_does_what_it_says(lab: Lab, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "events.md").read_text()
    (notify, script, on), (python,), (expected,) = (
        re.findall(rf"(?ms)^```{kind}\n(.*?)^```$", text) for kind in ("sh", "python", "text")
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("va-guest", "virtagent_guest"), ("va-host", "virtagent_host.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
    (programs / "note-backup").write_text(script)
    for program in programs.iterdir():
        program.chmod(0o755)
    environ = {**lab.environ, "PATH": f"{programs}:{lab.environ['PATH']}"}
    # From the first on, however long it takes to start; and not for ever.
    on = on.replace(" -- ", " --since 0 --count 2 -- ")
    with lab.agent(), lab.host():
        for command in (["sh", "-ec", notify], [sys.executable, "-c", python], ["sh", "-ec", on]):
            subprocess.run(command, env=environ, cwd=tmp_path, timeout=DEADLINE, check=True)
    assert (tmp_path / "backups.log").read_text() == expected.replace("uid 0", f"uid {os.getuid()}")
