"""va.exec and its like over two links, on real processes of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.unit.linkpair import Pair, linked, make_link
from virtagent_guest.jobs import job as job_module
from virtagent_guest.jobs import process, table
from virtagent_guest.jobs.request import DEFAULT_PATH
from virtagent_guest.jobs.ring import RING_SIZE
from virtagent_guest.jobs.table import JobTable
from virtagent_guest.methods import exec as methods
from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import RemoteFault
from virtagent_protocol.limits import STREAM_WINDOW
from virtagent_protocol.registry import Registry
from virtagent_protocol.session import Role
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Struct, Value

#: Seconds for a whole test.
DEADLINE = 20.0


async def read_all(stream: LinkStream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


async def read_status(stream: LinkStream) -> Value:
    value, fault = xmlrpc.decode_response(await read_all(stream))
    assert fault is None
    return value


class Host:
    """The host's end of jobs."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.call = pair.host.call

    async def exec(self, *argv: str, **members: Value) -> Struct:
        result = await self.call("va.exec", {"argv": list(argv), **members})
        assert isinstance(result, dict)
        return result

    async def attached(self, *argv: str, **members: Value) -> Attached:
        io, status = self.pair.host.open_stream(), self.pair.host.open_stream()
        err = self.pair.host.open_stream() if members.pop("stderr", False) else None
        if err is not None:
            members["stderr"] = err.id
        result = await self.exec(*argv, io=io.id, status=status.id, **members)
        return Attached(result, io, err, status)

    async def run(self, *argv: str, stdin: bytes = b"", **members: Value) -> tuple[bytes, Value]:
        job = await self.attached(*argv, **members)

        async def feed() -> None:
            with suppress(trio.BrokenResourceError):
                await job.io.send_all(stdin)
                await job.io.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            return await read_all(job.io), await read_status(job.status)

    async def fault(self, *argv: str, **members: Value) -> str:
        with pytest.raises(RemoteFault) as caught:
            await self.attached(*argv, **members)
        return str(caught.value)

    async def job(self, number: Value) -> Struct:
        found = [j for j in await self.jobs() if j["id"] == number]
        return found[0] if found else {}

    async def jobs(self) -> list[Struct]:
        jobs = await self.call("va.jobs")
        assert isinstance(jobs, list)
        return [job for job in jobs if isinstance(job, dict)]

    async def until_ended(self, number: Value) -> Struct:
        while (job := await self.job(number)).get("state") != "ended":
            await trio.sleep(0.01)
        return job


class Attached:
    def __init__(self, result: Struct, io: LinkStream, stderr: LinkStream | None, status: LinkStream) -> None:
        self.id, self.pid = result["id"], result["pid"]
        self.io, self.stderr, self.status = io, stderr, status


def fresh_table() -> JobTable:
    """Return a table without the jobs of other tests, for the methods to use."""
    jobs = JobTable()
    setattr(methods, "JOBS", jobs)  # noqa: B010
    return jobs


@asynccontextmanager
async def guest() -> AsyncIterator[Host]:
    registry = Registry()
    registry.include(methods.registry)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + DEADLINE
        await nursery.start(fresh_table().run)
        try:
            async with linked(make_link(Role.HOST), make_link(Role.GUEST, registry)) as pair:
                yield Host(pair)
        finally:
            late = nursery.cancel_scope.cancel_called
            nursery.cancel_scope.cancel()
    assert not late, f"not done within {DEADLINE} s"


def alive(pid: Value) -> bool:
    assert isinstance(pid, int)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def gone(pid: Value) -> None:
    while alive(pid):
        await trio.sleep(0.01)


# --- Attached ----------------------------------------------------------------------------------------


async def test_bytes_go_through_and_the_code_comes_last() -> None:
    payload = bytes(range(256)) * 5000
    async with guest() as host:
        assert await host.run("cat", stdin=payload) == (payload, {"code": 0})
        assert await host.run("exit 7", shell=True) == (b"", {"code": 7})
        assert await host.run("kill -9 $$", shell=True) == (b"", {"signal": 9, "core": False})


async def test_stderr_is_apart_merged_or_dropped() -> None:
    script = "echo out; echo err >&2"
    async with guest() as host:
        job = await host.attached(script, shell=True, stderr=True)
        assert job.stderr is not None
        assert (await read_all(job.io), await read_all(job.stderr)) == (b"out\n", b"err\n")
        assert await read_status(job.status) == {"code": 0}
        assert await host.run(script, shell=True, merge=True) == (b"out\nerr\n", {"code": 0})
        assert await host.run(script, shell=True) == (b"out\n", {"code": 0})


async def test_a_process_has_its_directory_variables_and_session(tmp_path: Path) -> None:
    async with guest() as host:
        out, _ = await host.run("pwd; echo $A $HOME", shell=True, cwd=str(tmp_path), env={"A": "ä\tb"})
        assert out.decode() == f"{tmp_path}\nä b {os.path.expanduser('~')}\n"
        out, _ = await host.run("env", clear_env=True, env={"X": "1"})
        assert sorted(out.split()) == [b"PATH=" + DEFAULT_PATH.encode(), b"X=1"]
        out, _ = await host.run("ps -o sid=,pgid=,pid= -p $$; umask", shell=True)
        *ids, umask = out.split()
        assert len(set(ids)) == 1
        assert umask == b"0022"


async def test_a_process_runs_without_what_is_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    async with guest() as host:
        out, _ = await host.run("env")
        assert b"NOTIFY_SOCKET" not in out
        assert b"\nPATH=" in b"\n" + out


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_process_runs_as_the_user_that_was_asked_for() -> None:
    async with guest() as host:
        out, _ = await host.run("id -un; id -gn; echo $HOME $USER $LOGNAME", shell=True, user="daemon")
        assert out == b"daemon\ndaemon\n/usr/sbin daemon daemon\n"
        out, _ = await host.run("id -G", shell=True, user="daemon", pty={"rows": 24, "cols": 80})
        assert out.strip() == b"1"


async def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    async with guest() as host:
        assert "no such program in the guest: nosuchprogram" in await host.fault("nosuchprogram")
        assert "/no/such cannot be run: No such file or directory" in await host.fault("/no/such")
        assert f"{plain} cannot be run: Permission denied" in await host.fault(str(plain))
        assert "working directory /no/such: No such file" in await host.fault("true", cwd="/no/such")
        assert "no user 'nosuchuser'" in await host.fault("true", user="nosuchuser")
        # With a terminal or limits, it is another process that finds out.
        terminal: Struct = {"rows": 24, "cols": 80}
        assert f"{plain} cannot be run: Permission denied" in await host.fault(str(plain), pty=terminal)
        assert "limits of the process cannot be set" in await host.fault("true", limits={"files": 2**40})
        assert await host.jobs() == []
        assert host.pair.host.figures()["streams"] == {"open": 0, "slots": 256}


async def test_limits_hold() -> None:
    async with guest() as host:
        out, _ = await host.run("ulimit -n; ulimit -t", shell=True, limits={"files": 33, "cpu": 100})
        assert out == b"33\n100\n"


async def test_a_reader_that_is_stuck_stalls_its_process_and_nothing_else() -> None:
    async with guest() as host:
        stuck = await host.attached("yes")
        await trio.sleep(0.2)
        payload = bytes(STREAM_WINDOW * 4)
        assert await host.run("cat", stdin=payload[:1000]) == (payload[:1000], {"code": 0})
        assert len(await stuck.io.receive_some()) > 0
        stuck.io.reset("cancelled")
        await gone(stuck.pid)


async def test_hanging_up_ends_the_process_by_sighup() -> None:
    async with guest() as host:
        # Its stdin has ended, and it writes nothing: nobody sends or receives anything.
        job = await host.attached("trap 'exit 3' HUP; echo ready; while :; do sleep 0.01; done", shell=True)
        await job.io.send_eof()
        assert await job.io.receive_some() == b"ready\n"
        job.io.reset("cancelled")
        assert await read_status(job.status) == {"code": 3}


async def test_one_that_ignores_sighup_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "HANGUP_GRACE", 0.1)
    async with guest() as host:
        job = await host.attached("trap '' HUP; echo ready; sleep 100", shell=True)
        assert await job.io.receive_some() == b"ready\n"
        job.io.reset("cancelled")
        assert await read_status(job.status) == {"signal": 9, "core": False}


async def test_an_output_that_nobody_reads_is_a_broken_pipe() -> None:
    async with guest() as host:
        job = await host.attached("yes")
        assert await job.io.receive_some()
        job.io.reset("unread")
        assert await read_status(job.status) == {"signal": signal.SIGPIPE, "core": False}


async def test_the_end_of_the_session_ends_an_attached_job_and_no_detached_one() -> None:
    registry = Registry()
    registry.include(methods.registry)
    async with trio.open_nursery() as nursery:
        await nursery.start(fresh_table().run)
        async with linked(make_link(Role.HOST), make_link(Role.GUEST, registry)) as pair:
            host = Host(pair)
            attached = await host.attached("sleep", "100")
            detached = await host.exec("sleep", "100")
        await gone(attached.pid)
        assert alive(detached["pid"])
        nursery.cancel_scope.cancel()
    await gone(detached["pid"])


async def test_a_deadline_ends_the_process_and_the_status_says_so() -> None:
    async with guest() as host:
        assert await host.run("sleep", "100", deadline=0.1) == (
            b"",
            {"signal": 15, "core": False, "deadline": True},
        )
        script = "trap '' TERM; while :; do sleep 0.01; done"
        assert await host.run(script, shell=True, deadline=0.1) == (
            b"",
            {"signal": 9, "core": False, "deadline": True},
        )
        assert await host.run("true", deadline=100) == (b"", {"code": 0})


async def test_children_left_behind_do_not_keep_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LINGER", 0.2)
    async with guest() as host:
        job = await host.attached("echo first; (sleep 0.05; echo second; sleep 100) &", shell=True)
        assert await read_all(job.io) == b"first\nsecond\n"
        assert await read_status(job.status) == {"code": 0}
        os.killpg(int(str(job.pid)), signal.SIGKILL)


async def test_signals_reach_the_process_group() -> None:
    async with guest() as host:
        job = await host.attached(
            "trap 'echo caught; exit 0' INT; echo ready; while :; do sleep 0.01; done", shell=True
        )
        assert await job.io.receive_some() == b"ready\n"
        await host.call("va.job_signal", job.id, "INT")
        assert await read_all(job.io) == b"caught\n"
        assert await read_status(job.status) == {"code": 0}
        with pytest.raises(RemoteFault, match="there is no job"):
            await host.call("va.job_signal", job.id, "INT")
        with pytest.raises(RemoteFault, match="no signal 'NONSENSE'"):
            await host.call("va.job_signal", job.id, "NONSENSE")


# --- On a terminal -----------------------------------------------------------------------------------


async def test_a_terminal_is_a_controlling_one_and_has_a_size() -> None:
    async with guest() as host:
        script = "tty >/dev/null && echo yes; stty size </dev/tty; echo $TERM"
        out, status = await host.run(script, shell=True, pty={"rows": 33, "cols": 99, "term": "vt52"})
        assert (out, status) == (b"yes\r\n33 99\r\nvt52\r\n", {"code": 0})


async def test_a_terminal_is_resized_and_its_keys_mean_something() -> None:
    async with guest() as host:
        script = (
            "trap 'stty size' WINCH; trap 'echo int; exit 4' INT; echo ready; while :; do sleep 0.01; done"
        )
        job = await host.attached(script, shell=True, pty={"rows": 24, "cols": 80})
        assert await job.io.receive_some() == b"ready\r\n"
        await host.call("va.job_resize", job.id, 50, 132)
        assert await job.io.receive_some() == b"50 132\r\n"
        await job.io.send_all(b"\x03")
        assert await read_all(job.io) == b"^Cint\r\n"
        assert await read_status(job.status) == {"code": 4}
        with pytest.raises(RemoteFault, match="there is no job"):
            await host.call("va.job_resize", job.id, 50, 132)


async def test_the_end_of_input_is_typed_on_a_terminal() -> None:
    async with guest() as host:
        out, status = await host.run("sh", stdin=b"exit 5\n", pty={"rows": 24, "cols": 80})
        assert status == {"code": 5}
        out, status = await host.run("cat", stdin=b"a\n", pty={"rows": 24, "cols": 80})
        assert (out.replace(b"^D\b\b", b""), status) == (b"a\r\na\r\n", {"code": 0})


async def test_hanging_up_a_terminal_ends_what_runs_on_it() -> None:
    async with guest() as host:
        job = await host.attached("echo ready; sleep 100", shell=True, pty={"rows": 24, "cols": 80})
        assert await job.io.receive_some() == b"ready\r\n"
        job.io.reset("cancelled")
        assert await read_status(job.status) == {"signal": signal.SIGHUP, "core": False}


# --- Detached ----------------------------------------------------------------------------------------


async def follow(host: Host, number: Value, **members: Value) -> tuple[Struct, bytes, Value]:
    out, status = host.pair.host.open_stream(), host.pair.host.open_stream()
    answer = await host.call(
        "va.job_attach", {"id": number, "stdout": out.id, "status": status.id, **members}
    )
    assert isinstance(answer, dict)
    return answer, await read_all(out), await read_status(status)


async def test_output_of_a_detached_job_is_read_from_any_offset_at_any_time() -> None:
    async with guest() as host:
        job = await host.exec("echo one; read line; echo two >&2; exit 3", shell=True)
        ended = await host.until_ended(job["id"])
        assert ended["code"] == 3
        assert ended["argv"] == ["/bin/sh", "-c", "echo one; read line; echo two >&2; exit 3"]
        assert ended["output"] == {"stdout": {"begin": 0, "end": 4}, "stderr": {"begin": 0, "end": 4}}
        status = {"code": 3, "missed": 0}
        assert await follow(host, job["id"]) == ({"offset": 0, "stderr_offset": 0}, b"one\n", status)
        assert (await follow(host, job["id"], offset=2))[1:] == (b"e\n", status)
        err = host.pair.host.open_stream()
        assert (await follow(host, job["id"], stderr=err.id))[1:] == (b"one\n", status)
        assert await read_all(err) == b"two\n"
        await host.call("va.job_forget", job["id"])
        assert await host.jobs() == []


async def test_what_the_ring_has_lost_is_told() -> None:
    async with guest() as host:
        count = RING_SIZE + 1000
        job = await host.exec(f"head -c {count} /dev/zero", shell=True, merge=True)
        await host.until_ended(job["id"])
        answer, data, status = await follow(host, job["id"], offset=10)
        assert (answer, len(data), status) == ({"offset": 1000}, RING_SIZE, {"code": 0, "missed": 0})


async def test_a_follower_that_is_stuck_holds_up_nobody_and_learns_what_it_missed() -> None:
    async with guest() as host:
        count = 3 * RING_SIZE
        go = 'while ! [ -e "$GO" ]; do sleep 0.01; done'
        path = f"/tmp/virtagent-test-{os.getpid()}"
        job = await host.exec(f"{go}; head -c {count} /dev/zero", shell=True, env={"GO": path})
        out, status = host.pair.host.open_stream(), host.pair.host.open_stream()
        members: Struct = {"id": job["id"], "stdout": out.id, "status": status.id}
        await host.call("va.job_attach", members)
        Path(path).touch()
        try:
            await host.until_ended(job["id"])
        finally:
            Path(path).unlink()
        got = len(await read_all(out))
        assert await read_status(status) == {"code": 0, "missed": count - got}
        assert RING_SIZE <= got < count


async def test_a_follower_that_leaves_takes_nothing_with_it() -> None:
    async with guest() as host:
        job = await host.exec("sleep", "100")
        out, status = host.pair.host.open_stream(), host.pair.host.open_stream()
        await host.call("va.job_attach", {"id": job["id"], "stdout": out.id, "status": status.id})
        status.reset("cancelled")
        await out.broken.wait()
        assert alive(job["pid"])
        with pytest.raises(RemoteFault, match="runs: signal it first"):
            await host.call("va.job_forget", job["id"])
        await host.call("va.job_signal", job["id"], "SIGTERM")
        assert (await host.until_ended(job["id"]))["signal"] == 15


async def test_too_many_jobs_are_refused_and_old_ones_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "DETACHED_MAX", 2)
    monkeypatch.setattr(table, "RUNNING_MAX", 3)
    monkeypatch.setattr(table, "FINISHED_MAX", 2)
    async with guest() as host:
        first, second = await host.exec("sleep", "100"), await host.exec("sleep", "100")
        with pytest.raises(RemoteFault, match="2 detached jobs run"):
            await host.exec("true")
        job = await host.attached("sleep", "100")
        assert "3 jobs run, and 3 may" in await host.fault("true")
        job.io.reset("cancelled")
        await gone(job.pid)
        for one in (second, first):
            await host.call("va.job_signal", one["id"], "KILL")
            await host.until_ended(one["id"])
        third = await host.exec("true")
        await host.until_ended(third["id"])
        assert [one["id"] for one in await host.jobs()] == [first["id"], third["id"]]


async def test_an_attached_job_is_joined_by_nobody() -> None:
    async with guest() as host:
        job = await host.attached("cat")
        with pytest.raises(RemoteFault, match="is not detached"):
            await follow(host, job.id)
        await job.io.send_eof()
        assert await read_status(job.status) == {"code": 0}
