"""va-guest as a process, with a host's link at the other end of its channel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from virtagent_protocol.errors import FaultCode, LinkBroken, RemoteFault, SessionReset
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent, LinkState
from virtagent_protocol.registry import Registry
from virtagent_protocol.session import Role

ROOT = Path(__file__).parents[2]
#: Seconds for a whole test; the agent's start takes one of them on a slow machine.
DEADLINE = 30.0


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE):
        yield


class ServiceManager:
    """The socket that sd_notify writes to."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._path = path

    async def __aenter__(self) -> ServiceManager:
        await self._socket.bind(self.address)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._socket.close()

    async def wait_for(self, wanted: str) -> None:
        """Wait for a message with this text in it."""
        while wanted not in (await self._socket.recv(4096)).decode():
            pass


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[ServiceManager]:
    async with ServiceManager(tmp_path / "notify") as manager:
        yield manager


class Agent:
    """A running va-guest and where its log goes."""

    def __init__(self, process: trio.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()


@contextlib.asynccontextmanager
async def agent(tmp_path: Path, *arguments: str, **variables: str) -> AsyncIterator[Agent]:
    """Run va-guest; kill it at the end if it is still there."""
    config = tmp_path / "guest.toml"
    config.touch()
    log = tmp_path / "log"
    command = [sys.executable, "-m", "virtagent_guest", "--config", str(config), *arguments]
    python_path = f"{ROOT}:{ROOT / 'protocol'}"
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            command, stderr=stderr, env={**os.environ, **variables, "PYTHONPATH": python_path}
        )
    try:
        yield Agent(process, log)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def listener_on(path: str) -> AsyncIterator[trio.SocketListener]:
    sock = trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX))
    await sock.bind(path)
    sock.listen(1)
    async with trio.SocketListener(sock) as listener:
        yield listener


@contextlib.asynccontextmanager
async def host_link(stream: trio.abc.Stream) -> AsyncIterator[Link]:
    """A host's link on a stream, in session with the agent."""

    async def serve() -> None:
        with contextlib.suppress(LinkBroken):
            await link.run(stream)

    link = Link(Role.HOST, "test", Registry(), boot_id="host")
    link.hint(LinkEvent.PORT_OPENED, "the test has opened it")
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await link.wait_for(lambda status: status.state is LinkState.READY)
        yield link
        nursery.cancel_scope.cancel()


async def test_an_agent_that_listens_serves_one_host_after_another(
    tmp_path: Path, manager: ServiceManager
) -> None:
    path = str(tmp_path / "socket")
    async with agent(tmp_path, "-c", "unix-listen", "-p", path, NOTIFY_SOCKET=manager.address) as guest:
        await manager.wait_for("READY=1")
        for _ in range(2):
            async with host_link(await trio.open_unix_socket(path)) as link:
                assert link.session is not None
                assert link.session.peer.agent.startswith("va-guest ")
                assert (await link.call("va.getfile", "/proc/self/comm")) != b""
                with pytest.raises(RemoteFault, match="open failed: /nonexistent") as caught:
                    await link.call("va.getfile", "/nonexistent")
                assert caught.value.code == FaultCode.OPEN_FAILED
                await manager.wait_for("STATUS=ready: ")
            # Listening again.
            await manager.wait_for("READY=1")
        assert guest.log.count("va.getfile") == 4
        assert "/proc/self/comm" not in guest.log


async def test_an_agent_that_connects_waits_for_its_host_and_for_the_next_one(
    tmp_path: Path, manager: ServiceManager
) -> None:
    path = str(tmp_path / "socket")
    async with agent(tmp_path, "-c", f"unix-connect:{path}", NOTIFY_SOCKET=manager.address):
        await manager.wait_for("is not there: start the end that makes this socket")
        async with listener_on(path) as listener:
            for _ in range(2):
                async with host_link(await listener.accept()) as link:
                    await link.call("va.ping")


async def test_a_signal_ends_the_agent_at_once_and_in_order(tmp_path: Path, manager: ServiceManager) -> None:
    path = str(tmp_path / "socket")
    for number in (signal.SIGTERM, signal.SIGINT):
        async with agent(tmp_path, "-c", "unix-listen", "-p", path, NOTIFY_SOCKET=manager.address) as guest:
            await manager.wait_for("READY=1")
            async with host_link(await trio.open_unix_socket(path)):
                guest.process.send_signal(number)
                await manager.wait_for("STOPPING=1")
                assert await guest.process.wait() == 0
            assert number.name in guest.log
            with pytest.raises(FileNotFoundError):
                os.stat(path)


async def test_a_call_in_flight_fails_when_the_agent_is_killed(
    tmp_path: Path, manager: ServiceManager
) -> None:
    path = str(tmp_path / "socket")
    async with agent(tmp_path, "-c", "unix-listen", "-p", path, NOTIFY_SOCKET=manager.address) as guest:
        await manager.wait_for("READY=1")
        async with host_link(await trio.open_unix_socket(path)) as link:
            guest.process.send_signal(signal.SIGSTOP)
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def call() -> None:
                    with pytest.raises(SessionReset):
                        await link.call("va.getdmesg")

                await trio.testing.wait_all_tasks_blocked(0.05)
                guest.process.kill()


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["-p", "{tmp}/port"], 3, "va-guest: {tmp}/port is not there: add the port on the host"),
        (["-c", "isa-serial", "-p", "{tmp}/log"], 6, "va-guest: {tmp}/log is not a serial line"),
        (["-c", "unix-listen", "-p", "{tmp}/log"], 4, "va-guest: {tmp}/log is not a socket"),
    ],
)
async def test_a_channel_that_cannot_be_opened_ends_the_agent_with_a_status_and_a_remedy(
    tmp_path: Path, arguments: list[str], status: int, complaint: str
) -> None:
    async with agent(tmp_path, *(text.format(tmp=tmp_path) for text in arguments)) as guest:
        assert await guest.process.wait() == status
        # Before it may stand what else there is to complain of, such as a missing D-Bus.
        assert f"\n{complaint.format(tmp=tmp_path)}" in f"\n{guest.log}"


async def test_the_log_has_priorities_if_it_goes_to_the_journal(
    tmp_path: Path, manager: ServiceManager
) -> None:
    path = str(tmp_path / "socket")
    (tmp_path / "log").touch()
    status = os.stat(tmp_path / "log")
    journal = f"{status.st_dev}:{status.st_ino}"
    arguments = ["-c", "unix-listen", "-p", path]
    async with agent(tmp_path, *arguments, NOTIFY_SOCKET=manager.address, JOURNAL_STREAM=journal) as guest:
        await manager.wait_for("READY=1")
        assert guest.log == f"<6>listening on {path}\n"


async def test_an_agent_serves_a_serial_line(tmp_path: Path, manager: ServiceManager) -> None:
    far, near = os.openpty()
    path = os.ttyname(near)
    async with agent(tmp_path, "-c", "isa-serial", "-p", path, NOTIFY_SOCKET=manager.address):
        await manager.wait_for("READY=1")
        async with host_link(trio.lowlevel.FdStream(far)) as link:
            content = await link.call("va.getfile", sys.executable, 0, 1_000_000)
            with open(sys.executable, "rb") as file:  # noqa: ASYNC230 - every byte value is in there
                assert content == file.read(1_000_000)
    os.close(near)


async def test_help_and_version_do_not_import_trio() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}"}
    for option in ("--help", "--version"):
        command = [sys.executable, "-X", "importtime", "-m", "virtagent_guest", option]
        done = await trio.run_process(command, env=environment, capture_stdout=True, capture_stderr=True)
        assert b"va-guest" in done.stdout
        assert b"argparse\n" in done.stderr
        assert b" trio\n" not in done.stderr
