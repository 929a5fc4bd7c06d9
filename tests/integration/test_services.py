"""Services of the host, called by programs of the guest: va-guest and va-host as processes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.integration.clilab import run_on_terminal
from tests.integration.forwardlab import until_ready
from tests.integration.hostilelab import CONTROL, MIB, wait_until
from tests.integration.serviceslab import DEADLINE, Lab, environ, lab, va_guest, va_host
from virtagent_guest.calls.client import Ended, StandardFileFailed, call_service
from virtagent_host.frontend.client import VmClient
from virtagent_protocol.errors import CallTimeout, FailureKind, RemoteFault

#: Bytes of the backup.
BACKUP = 200 * MIB
#: Bytes by which neither end may grow for it: windows, pipes, and what Python takes for all of that.
GROWTH = 32 * MIB


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE):
        yield


@pytest.fixture
def demo() -> Iterator[Lab]:
    with lab() as processes:
        yield processes


async def first_line(process: trio.Process) -> bytes:
    assert process.stdout is not None
    seen = b""
    while not seen.endswith(b"\n"):
        data = await process.stdout.receive_some(1)
        assert data, "it has ended without a line"
        seen += bytes(data)
    return seen


async def ending(process: trio.Process) -> tuple[int, bytes, bytes]:
    """Return the status of a process that ends, and the rest of what it writes."""
    assert process.stdout is not None
    assert process.stderr is not None
    output = b"".join([bytes(part) async for part in process.stdout])
    errors = b"".join([bytes(part) async for part in process.stderr])
    return await process.wait(), output, errors


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- Who may -------------------------------------------------------------------------------------------


async def test_without_a_policy_nothing_is_allowed_and_nothing_is_told() -> None:
    with lab(policy=None) as demo:
        demo.service("there", "echo secret")
        there, missing = await demo.call("there"), await demo.call("missing")
        for result in (there, missing):
            assert (result.returncode, result.stdout) == (5, b"")
            assert b"va-guest call: forbidden: this host does not let root call service" in result.stderr
        # The same words, so that nobody learns which services there are; but for the name and the tag.
        words = [r.stderr.replace(b"missing", b"there").partition(b" under ")[0] for r in (there, missing)]
        assert words[0] == words[1]
        assert "there for root (uid 0), pid" in demo.host.log
        assert "forbidden: there are no rules, so nothing is allowed" in demo.host.log


async def test_a_refusal_is_logged_at_both_ends_by_the_same_tag(demo: Lab) -> None:
    demo.policy('[[rule]]\nname = "not that"\naction = "deny"\nservices = ["x"]\n')
    result = await demo.call("x")
    tag = result.stderr.split(b" under ")[1].split()[0].decode().rstrip(")")
    line = next(line for line in demo.host.log.splitlines() if tag in line and "forbidden" in line)
    assert line.endswith(f"forbidden: rule 'not that' ({demo.services}/policy.toml, line 1): denied")
    assert f"va.call_service {tag}: forbidden by the other end" in demo.guest.log


async def test_a_policy_with_an_error_is_told_and_the_old_one_stays(demo: Lab) -> None:
    demo.service("x", "echo x")
    demo.policy('[[rule]]\nname = "a"\naction = "allow"\nservices = ["x"]\nuser = ["*"]\n')
    assert f"that of before stays in force: {demo.services}/policy.toml, line 5: rule 'a'" in demo.host.log
    assert (await demo.call("x")).stdout == b"x\n"
    demo.policy("")
    assert (await demo.call("x")).returncode == 5


async def test_va_host_does_not_start_with_a_policy_that_has_an_error(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[[rule]]\n")
    attach = ["attach", "--channel", "unix:/nowhere", "--name", "x", "--services-dir", str(tmp_path)]
    result = await trio.run_process(
        [sys.executable, "-m", "virtagent_host.cli", "--runtime-dir", str(tmp_path / "run"), *attach],
        capture_stderr=True,
        check=False,
        env=environ(),
    )
    assert result.returncode == 2
    assert f"va-host: refused: {tmp_path}/policy.toml, line 1: name must be".encode() in result.stderr


async def test_what_others_could_change_is_no_service(demo: Lab) -> None:
    demo.service("loose", "echo x").chmod(0o777)
    demo.service("text", "echo x").chmod(0o644)
    for name, why in (("loose", "others may write to"), ("text", "is no executable file")):
        result = await demo.call(name)
        assert result.returncode == 1
        assert b"this host cannot run its service" in result.stderr
        assert str(demo.services).encode() not in result.stderr
        assert f"{demo.services}/bin/{name}" in demo.host.log
        assert why in demo.host.log
    missing = await demo.call("missing")
    assert missing.returncode == 3
    assert b"not there: this host has no service 'missing'" in missing.stderr


# --- What it is given, and gives back ------------------------------------------------------------------


async def test_a_service_has_a_clean_environment_and_its_status_comes_back(demo: Lab) -> None:
    demo.service("env", 'env; pwd; umask; echo "to the log" >&2; exit 7')
    result = await demo.call("env")
    *variables, directory, umask = result.stdout.decode().splitlines()
    found = dict(line.partition("=")[::2] for line in variables)
    assert found.pop("PATH").startswith("/usr/local/sbin:")
    assert found.pop("VA_CALLER_PID").isdecimal()
    found.pop("PWD", None)  # the shell's own
    assert found == {
        "VA_VM": "demo",
        "VA_SERVICE": "env",
        "VA_CALLER_UID": "0",
        "VA_CALLER_GID": "0",
        "VA_CALLER_USER": "root",
    }
    assert (directory, umask, result.returncode, result.stderr) == ("/", "0077", 7, b"")
    wait_until(lambda: "stderr: to the log" in demo.host.log, demo.host)


async def test_arguments_arrive_as_they_are_and_no_shell_sees_them(demo: Lab) -> None:
    demo.service("args", 'printf "%s|" "$@"')
    given = ["$(touch /tmp/owned)", "a\nb", "`id`", "; id", "", "*", "' \"", "\udcff", "é"]
    result = await demo.call("args", *given)
    assert result.stdout == b"".join(os.fsencode(word) + b"|" for word in given)
    dashed = await demo.call("args", "--", "-rf")
    assert dashed.returncode == 5
    assert "argument 1 begins with a dash" in demo.host.log


async def test_output_comes_as_it_is_written(demo: Lab) -> None:
    demo.service("live", "echo first; cat; echo last")
    process = await demo.open("--stdin", "live", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert await first_line(process) == b"first\n"
    await process.stdin.send_all(b"given\n")
    assert await first_line(process) == b"given\n"
    await process.stdin.aclose()
    assert await ending(process) == (0, b"last\n", b"")


async def test_without_stdin_a_service_reads_nothing(demo: Lab) -> None:
    demo.service("cat", "cat; echo end")
    assert (await demo.call("cat", stdin=b"not for it")).stdout == b"end\n"


async def test_a_service_that_reads_nothing_ends_its_callers_input(demo: Lab) -> None:
    demo.service("deaf", "exit 3")
    process = await demo.open("--stdin", "deaf", stdin=subprocess.PIPE)
    # Its stdin stays open: the end of the service is what ends it.
    assert (await ending(process))[0] == 3


async def test_a_backup_of_200_mb_arrives_whole_in_bounded_memory(demo: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    digest = hashlib.sha256()
    piece = os.urandom(MIB)
    with source.open("wb") as file:
        for number in range(BACKUP // MIB):
            data = number.to_bytes(8, "big") + piece[8:]
            file.write(data)
            digest.update(data)
    demo.service("backup.put", "sha256sum")
    before = [process.reset_peak() for process in (demo.host, demo.guest)]
    with source.open("rb") as file:
        process = await demo.open("--stdin", "backup.put", stdin=file.fileno())
        status, output, errors = await ending(process)
    assert (status, output, errors) == (0, digest.hexdigest().encode() + b"  -\n", b"")
    for was, process_of in zip(before, (demo.host, demo.guest), strict=True):
        assert process_of.peak - was < GROWTH


async def test_a_large_output_that_is_read_late_arrives_whole(demo: Lab) -> None:
    demo.service("much", f"head -c {30 * MIB} /dev/zero; exit 4")
    process = await demo.open("much")
    await until(lambda: "much" in demo.host.log)
    await trio.sleep(1.5)  # longer than what others leave in a pipe is waited for
    status, output, _ = await ending(process)
    assert (status, len(output)) == (4, 30 * MIB)


# --- What goes wrong -----------------------------------------------------------------------------------

#: Says its process id, then reads to the end; what it takes for a whole it says in a file.
STORE = 'echo $$; cat >"$0.part"; echo "$?" >"$0.whole"'


async def storing(demo: Lab) -> tuple[trio.Process, int, Path]:
    path = demo.service("store", STORE)
    process = await demo.open("--stdin", "store", stdin=subprocess.PIPE)
    pid = int(await first_line(process))
    assert process.stdin is not None
    await process.stdin.send_all(b"half of it")
    part = path.with_name("store.part")
    await until(lambda: part.exists() and part.read_bytes() == b"half of it")
    return process, pid, path.with_name("store.whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_caller_that_is_killed_ends_the_service_and_its_input_is_no_whole(
    demo: Lab, number: signal.Signals
) -> None:
    process, pid, whole = await storing(demo)
    process.send_signal(number)
    await ending(process)
    await until(lambda: not alive(pid))
    assert not whole.exists()
    await until(lambda: "ended by signal" in demo.host.log)


async def test_an_agent_that_is_killed_ends_the_service_and_the_caller_is_told(demo: Lab) -> None:
    process, pid, whole = await storing(demo)
    demo.guest.kill()
    status, _, errors = await ending(process)
    assert status == 6
    assert b"va-guest call: broken: service 'store' was lost, and the host has ended it" in errors
    await until(lambda: not alive(pid))
    assert not whole.exists()


async def test_a_va_host_that_is_killed_ends_the_service_and_the_caller_is_told(demo: Lab) -> None:
    process, pid, whole = await storing(demo)
    demo.host.kill()
    status, _, errors = await ending(process)
    assert status == 6
    assert b"va-guest call: broken: service 'store' was lost" in errors
    await until(lambda: not alive(pid))
    assert not whole.exists()
    again = await demo.call("store")
    assert again.returncode == 4
    assert b"not ready: the host cannot be called" in again.stderr
    with va_host(demo.directory, demo.name):
        while (result := await demo.call("store")).returncode == 4:
            await trio.sleep(0.05)
        assert result.returncode == 0


async def test_a_service_has_time_to_clean_up_when_the_link_is_lost_and_the_link_does_not_wait(
    demo: Lab,
) -> None:
    trap = 'trap "sleep 1; echo cleaned >$0.end; exit 1" TERM; echo $$; while :; do sleep 0.1; done'
    path = demo.service("tidy", trap)
    process = await demo.open("tidy")
    await first_line(process)
    demo.guest.kill()
    assert (await ending(process))[0] == 6
    await until(lambda: path.with_name("tidy.end").exists())
    # What it holds does not keep the next agent from being served.
    with va_guest(demo.directory):
        await trio.to_thread.run_sync(until_ready, demo.runtime, demo.name)


async def test_one_that_ignores_sigterm_is_killed_with_its_children(demo: Lab) -> None:
    demo.service("stubborn", "trap '' TERM; sleep 1000 & echo $!; wait; wait; sleep 1000")
    process = await demo.open("--timeout", "1", "stubborn")
    child = int(await first_line(process))
    status, _, errors = await ending(process)
    assert status == 6
    assert b"timed out: service 'stubborn': it has not ended within 1 s" in errors
    await until(lambda: not alive(child))


async def test_a_service_whose_time_is_over_ends_with_124(demo: Lab) -> None:
    demo.policy(
        '[[rule]]\nname = "a"\naction = "allow"\nservices = ["slow"]\nusers = ["*"]\nrun-time = 0.5\n'
    )
    demo.service("slow", "echo begun; sleep 1000")
    result = await demo.call("slow")
    assert (result.returncode, result.stdout) == (124, b"begun\n")
    assert "it has reached its run-time of 0.5 s" in demo.host.log


async def test_what_a_service_leaves_behind_ends_with_it(demo: Lab) -> None:
    demo.service("leaving", "sleep 1000 & echo $!; exit 0")
    begin = time.monotonic()
    result = await demo.call("leaving")
    assert result.returncode == 0
    assert time.monotonic() - begin < 20
    await until(lambda: not alive(int(result.stdout)))


async def test_a_daemon_that_goes_on_writing_does_not_keep_the_call(demo: Lab) -> None:
    demo.service("daemon", "setsid yes & echo $!; exit 0")
    process = await demo.open("daemon")
    pid = int(await first_line(process))
    assert (await ending(process))[0] == 0
    # Nobody reads it any more, so SIGPIPE ends it.
    await until(lambda: not alive(pid))


async def test_bytes_each_way_are_bounded_where_the_rule_says_so(demo: Lab) -> None:
    demo.policy(
        '[[rule]]\nname = "a"\naction = "allow"\nservices = ["*"]\nusers = ["*"]\n'
        "input-max = 100_000\noutput-max = 100_000\n"
    )
    demo.service("in", "wc -c")
    demo.service("out", "head -c 100001 /dev/zero; sleep 1000")
    assert (await demo.call("--stdin", "in", stdin=bytes(100_000))).stdout == b"100000\n"
    result = await demo.call("--stdin", "in", stdin=bytes(100_001))
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"it takes 100000 bytes of input, and there are more" in result.stderr
    result = await demo.call("out")
    assert result.returncode == 1
    assert b"it may write 100000 bytes, and has written more" in result.stderr


async def test_stderr_of_a_service_is_bounded_in_the_log_and_made_visible(demo: Lab) -> None:
    noise = r'import os; os.write(2, b"\x1b]0;owned\x07\xff\n" + b"x" * 5000 + b"\n" + b"line\n" * 100_000)'
    demo.service("noisy", noise, sys.executable)
    assert (await demo.call("noisy")).returncode == 0
    await until(lambda: "lines left out)" in demo.host.log)
    lines = [line for line in demo.host.log.splitlines() if "stderr:" in line]
    assert r"stderr: \x1b]0;owned\x07\xff" in lines[0]
    assert len(lines) <= 101
    assert max(map(len, lines)) < 800
    assert not CONTROL.search(demo.host.log)


async def test_calls_beyond_a_limit_are_refused_at_once(demo: Lab) -> None:
    demo.service("wait", "echo begun; cat")
    processes = [await demo.open("--stdin", "wait", stdin=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        await first_line(process)
    result = await demo.call("wait")
    assert result.returncode == 4
    assert b"not ready: 4 calls of this user are running, which is all that may: try again" in result.stderr
    for process in processes:
        assert process.stdin is not None
        await process.stdin.aclose()
        assert (await ending(process))[0] == 0
    assert (await demo.call("wait")).returncode == 0


async def test_a_flood_of_calls_and_events_leaves_ten_other_vms_quick(demo: Lab) -> None:
    demo.service("quick", "exit 0")
    with ExitStack() as stack:
        others = [stack.enter_context(lab(f"other{number}")) for number in range(10)]
        clients = [stack.enter_context(VmClient.connect(other.runtime, other.name)) for other in others]
        longest, ended = 0.0, trio.Event()

        async def flood() -> None:
            flooder = "import sys; from tests.integration.servicesflood import main; main(*sys.argv[1:])"
            command = [sys.executable, "-c", flooder, demo.socket, "400"]
            begun = trio.current_time()
            result = await trio.run_process(
                command, capture_stdout=True, capture_stderr=True, check=False, env=environ()
            )
            assert result.returncode == 0, result.stderr
            outcomes = json.loads(result.stdout)
            # So many in a minute, of one user: at once, and then one each second.
            assert outcomes["0"] <= 60 + trio.current_time() - begun
            assert sum(outcomes.values()) == 400
            assert set(outcomes) <= {"0", "4"}
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            for client in itertools.cycle(clients):
                begin = time.monotonic()
                await trio.to_thread.run_sync(partial(client.execute, "va_ping", timeout=DEADLINE))
                longest = max(longest, time.monotonic() - begin)
                await trio.sleep(0.02)
                if ended.is_set():
                    break
        print(f"the longest ping of another VM took {longest:.3f} s")
        assert longest < 2.0


# --- Functions, and the client for Python ---------------------------------------------------------------


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed package with services, for all processes that are started."""
    info = tmp_path / "site/inventory-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inventory\nVersion: 1.0\n")
    names = ("echo", "sleep", "block", "refuse", "crash", "strange", "missing")
    points = "\n".join(f"inventory.{name} = inventory:{name}" for name in names)
    (info / "entry_points.txt").write_text(f"[virtagent.services]\n{points}\n")
    (tmp_path / "site/inventory.py").write_text(
        """\
import time, trio
from virtagent_protocol.errors import Forbidden
def echo(context, *values):
    return {"vm": context.vm, "uid": context.caller.uid, "values": list(values)}
async def sleep(context):
    await trio.sleep_forever()
def block(context):
    time.sleep(2)
def refuse(context):
    raise Forbidden("not today")
def crash(context):
    raise ValueError("secret")
def strange(context):
    return object()
"""
    )
    import tests.integration.serviceslab as serviceslab
    from tests.integration import hostilelab

    path = f"{hostilelab.PYTHON_PATH}:{tmp_path}/site"
    monkeypatch.setattr(hostilelab, "PYTHON_PATH", path)
    monkeypatch.setattr(serviceslab, "PYTHON_PATH", path)


async def called(demo: Lab, service: str, *values: object, **more: object) -> Ended:
    def call() -> Ended:
        return call_service(service, *values, path=demo.socket, **more)  # type: ignore[arg-type]

    return await trio.to_thread.run_sync(call)


async def test_a_function_takes_values_and_returns_one(functions: None) -> None:
    with lab() as demo:
        values = [1, "two", b"\x00\xff", [3.5, None], {"four": True}]
        ended = await called(demo, "inventory.echo", *values)
        assert (ended.kind, ended.status) == ("function", 0)
        assert ended.value == {"vm": "demo", "uid": os.getuid(), "values": values}
        result = await demo.call("inventory.echo", "x")
        assert json.loads(result.stdout) == {"vm": "demo", "uid": os.getuid(), "values": ["x"]}


async def test_a_function_that_fails_tells_the_guest_no_more_than_it_wants_to(functions: None) -> None:
    with lab() as demo:
        with pytest.raises(RemoteFault, match="not today") as caught:
            await called(demo, "inventory.refuse")
        assert caught.value.kind is FailureKind.FORBIDDEN
        for name in ("crash", "strange"):
            with pytest.raises(RemoteFault, match="the service failed") as caught:
                await called(demo, f"inventory.{name}")
            assert "secret" not in str(caught.value)
        with pytest.raises(RemoteFault, match=r"cannot run its service 'inventory\.missing' now"):
            await called(demo, "inventory.missing")
        assert "ValueError: secret" in demo.host.log
        assert "inventory:missing cannot be imported" in demo.host.log


async def test_a_function_ends_when_its_caller_gives_up(functions: None) -> None:
    policy = '[limits]\ncalls = 1\n[[rule]]\nname = "a"\naction = "allow"\nservices = ["*"]\nusers = ["*"]\n'
    with lab(policy=policy) as demo:
        with pytest.raises(CallTimeout):
            await called(demo, "inventory.sleep", timeout=0.5)
        # A thread cannot be stopped, so its place is taken until it ends by itself.
        with pytest.raises(CallTimeout):
            await called(demo, "inventory.block", timeout=0.5)
        with pytest.raises(RemoteFault, match="1 calls of this guest are running"):
            await called(demo, "inventory.echo")

        async def place_is_free() -> bool:
            try:
                await called(demo, "inventory.echo")
            except RemoteFault:
                return False
            return True

        while not await place_is_free():
            await trio.sleep(0.1)


async def test_the_client_collects_output_or_writes_it_to_a_file(demo: Lab, tmp_path: Path) -> None:
    demo.service("cat", "cat; exit 3")
    ended = await called(demo, "cat", stdin=b"given")
    assert ended == Ended("program", code=3, output=b"given")
    (tmp_path / "in").write_bytes(b"from a file")
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        assert (await called(demo, "cat", stdin=source, stdout=sink)).output == b""
    assert (tmp_path / "out").read_bytes() == b"from a file"
    with (tmp_path / "in").open("rb") as sink, pytest.raises(StandardFileFailed, match="cannot be written"):
        await called(demo, "cat", stdin=b"x", stdout=sink)


async def test_a_reader_that_goes_away_is_no_error_of_its_own(demo: Lab) -> None:
    demo.service("forever", "yes")
    shell = "set -o pipefail; " + " ".join(demo.command("forever")) + " | head -1"
    result = await trio.run_process(
        ["bash", "-c", shell], capture_stdout=True, capture_stderr=True, check=False, env=environ()
    )
    assert (result.returncode, result.stdout, result.stderr) == (141, b"y\n", b"")


async def test_a_terminal_is_not_driven_by_what_a_service_writes(demo: Lab) -> None:
    demo.service("hostile", r"printf '\033]0;owned\007\303'; printf '\251\n'")
    run = partial(run_on_terminal, demo.command("hostile"), {**environ(), "TERM": "xterm"}, [])
    seen, status = await trio.to_thread.run_sync(run)
    assert (seen, status) == ("\\x1b]0;owned\\x07é\n", 0)
    assert (await demo.call("hostile")).stdout == b"\x1b]0;owned\x07\xc3\xa9\n"


# --- The host's own commands ----------------------------------------------------------------------------


async def services(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(
        [sys.executable, "-m", "virtagent_host.cli", "services", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environ(),
    )


async def test_the_host_explains_a_decision_and_finds_mistakes(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/backup.put").write_text("#!/bin/sh\n")
    (tmp_path / "bin/backup.put").chmod(0o755)
    (tmp_path / "bin/notes").write_text("no program\n")
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[[rule]]\nname = "a"\naction = "allow"\nservices = ["backup.*"]\nusers = ["root", 1000]\n'
        'arguments = ["*"]\n'
    )
    where = ("--services-dir", str(tmp_path))
    result = await services("why", *where, "web", "1000:alice", "backup.put", "x")
    assert result.returncode == 0
    assert f"backup.put: allowed: rule 'a' ({policy}, line 1): allowed".encode() in result.stdout
    result = await services("why", *where, "--json", "web", "1001", "backup.put", "x")
    assert result.returncode == 5
    assert json.loads(result.stdout)["why"] == "no rule allows it"
    result = await services("why", *where, "web", "root", "backup.put", "--", "-x")
    assert b"begins with a dash" in result.stdout
    result = await services("list", *where, "--json")
    listed = json.loads(result.stdout)
    assert listed["backup.put"] == {"usable": True, "what": str(tmp_path / "bin/backup.put")}
    assert not listed["notes"]["usable"]
    assert (await services("check", *where)).stdout == f"{policy}: 1 rules\n".encode()
    policy.write_text('[[rule]]\nname = "a"\nactoin = "allow"\n')
    result = await services("check", str(policy))
    assert result.returncode == 2
    assert f"{policy}, line 3: rule 'a': no such key: 'actoin'".encode() in result.stderr
