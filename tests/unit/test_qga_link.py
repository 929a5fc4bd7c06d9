"""qemu-ga as a peer: in step, out of step, silent, gone. It is a script at the end of a memory stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from virtagent_host.qga.conversation import SYNC_AGAIN
from virtagent_host.qga.link import IDLE, PATIENCE, QgaLink
from virtagent_protocol.errors import (
    FaultCode,
    LinkBroken,
    NotReady,
    RemoteFault,
    RemoteProtocolError,
    SessionReset,
)
from virtagent_protocol.linkstate import LinkEvent, LinkState

COMMANDS = ["guest-ping", "guest-info", "guest-sync-delimited", "guest-shutdown", "guest-get-host-name"]
FILES = ["guest-file-open", "guest-file-seek", "guest-file-read", "guest-file-close"]


class Script:
    """An agent that does what a test says.

    Attributes:
        deaf: it reads, and does not answer.
        answers: command → what to answer instead.
        asked: all commands that came, syncs apart.
    """

    def __init__(self, stream: trio.StapledStream[Any, Any], commands: list[str]) -> None:
        self.stream = stream
        self.deaf = False
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.syncs = 0
        self._commands = commands

    async def run(self) -> None:
        buffer = b""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in self.stream:
                buffer += data
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    await self.serve(json.loads(line.rpartition(b"\xff")[2]))

    async def serve(self, command: dict[str, Any]) -> None:
        name = command["execute"]
        if name == "guest-sync-delimited":
            self.syncs += 1
            if not self.deaf:
                await self.say(command["arguments"]["id"], b"\xff")
            return
        self.asked.append(name)
        if self.deaf or self.answers.get(name) == "nothing":
            return
        if name == "guest-info":
            listed = [{"name": n, "enabled": True, "success-response": True} for n in self._commands]
            await self.say({"version": "7.2.0", "supported_commands": listed})
        elif isinstance(self.answers.get(name), Exception):
            error = {"class": "GenericError", "desc": str(self.answers[name])}
            await self.stream.send_all(json.dumps({"error": error}).encode() + b"\n")
        else:
            await self.say(self.answers.get(name, {}))

    async def say(self, result: Any, before: bytes = b"") -> None:
        await self.stream.send_all(before + json.dumps({"return": result}).encode() + b"\n")


@asynccontextmanager
async def linked(commands: list[str] = COMMANDS) -> AsyncIterator[tuple[QgaLink, Script]]:
    ours, theirs = trio.testing.memory_stream_pair()
    script = Script(theirs, commands)
    link = QgaLink()
    link.hint(LinkEvent.PORT_OPENED, "connected")

    async def run() -> None:
        with suppress(LinkBroken):
            await link.run(ours)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(script.run)
        nursery.start_soon(run)
        yield link, script
        nursery.cancel_scope.cancel()


async def until_ready(link: QgaLink) -> None:
    await link.wait_for(lambda status: status.state is LinkState.READY)


async def test_it_is_ready_when_the_agent_has_told_what_it_is(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, script):
        await until_ready(link)
        assert link.session is not None
        assert link.session.peer.agent == "qemu-ga 7.2.0"
        assert script.syncs == 1
        assert await link.call("va.ping") is None
        script.answers["guest-get-host-name"] = {"host-name": "x"}
        assert await link.call("guest.get_host_name", {}) == {"host-name": "x"}
        # In step, nobody syncs.
        assert script.syncs == 1


async def test_a_stale_answer_is_never_taken_for_another(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, script):
        await until_ready(link)
        script.answers["guest-get-host-name"] = "nothing"
        with trio.move_on_after(1) as patience:
            await link.call("guest.get_host_name", {})
        assert patience.cancelled_caught
        # What was given up is answered now, before all else.
        await script.say({"host-name": "stale"})
        script.answers["guest-get-host-name"] = {"host-name": "new"}
        assert await link.call("guest.get_host_name", {}) == {"host-name": "new"}
        assert script.syncs == 2
        assert link.counters.drops["late-reply"] == 1


async def test_a_lost_sync_is_sent_again(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, script):
        script.deaf = True
        await trio.sleep(SYNC_AGAIN * 2.5)
        assert link.status.state is LinkState.GREETING
        assert script.syncs == 3
        with pytest.raises(NotReady):
            await link.call("va.ping")
        script.deaf = False
        await until_ready(link)


async def test_an_agent_that_falls_silent_is_noticed_and_one_that_works_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked() as (link, script):
        await until_ready(link)
        script.answers["guest-get-host-name"] = "nothing"
        with trio.move_on_after(10 * IDLE):
            await link.call("guest.get_host_name", {})
        assert link.status.state is LinkState.READY
        script.deaf = True
        with trio.fail_after(2 * (IDLE + PATIENCE)):
            await link.wait_for(lambda status: status.state is LinkState.GREETING)
        assert "heartbeat" in link.status.reason


async def test_a_stopped_vm_is_not_declared_dead(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, script):
        await until_ready(link)
        link.pause("stopped")
        script.deaf = True
        await trio.sleep(10 * IDLE)
        assert link.status.state is LinkState.PAUSED
        script.deaf = False
        link.resume()
        await until_ready(link)
        await link.call("va.ping")


async def test_a_port_that_closes_ends_what_is_under_way(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, script):
        await until_ready(link)
        script.answers["guest-get-host-name"] = "nothing"

        async def close() -> None:
            await trio.sleep(1)
            link.hint(LinkEvent.PORT_CLOSED, "the guest has closed the port")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            with pytest.raises(SessionReset, match="closed the port"):
                await link.call("guest.get_host_name", {})
        link.hint(LinkEvent.PORT_OPENED, "an agent has opened the port")
        await until_ready(link)
        assert await link.call("va.ping") is None


async def test_a_shutdown_is_not_waited_for_and_its_error_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked() as (link, script):
        await until_ready(link)
        script.answers["guest-shutdown"] = "nothing"
        assert await link.call("va.shutdown", "powerdown") is None
        script.answers["guest-shutdown"] = ValueError("no")
        with pytest.raises(RemoteFault, match="no"):
            await link.call("va.shutdown", "powerdown")


async def test_what_the_agent_lacks_is_told_with_its_name(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (link, _script):
        await until_ready(link)
        for method, words in (
            (
                "va.getfile",
                "this guest runs qemu-ga 7.2.0, which has no 'va.getfile', which needs guest-file",
            ),
            ("va.exec", "this guest runs qemu-ga 7.2.0, which has no 'va.exec', which needs guest-exec"),
            ("va.jobs", "this guest runs qemu-ga 7.2.0, which has no 'va.jobs': install va-guest there"),
            ("guest.nope", "The command guest-nope has not been found"),
        ):
            with pytest.raises(RemoteFault, match=words) as caught:
                await link.call(method, "/x")
            assert caught.value.code == FaultCode.METHOD_NOT_FOUND
        capabilities = await link.call("va.capabilities")
        assert isinstance(capabilities, dict)
        assert capabilities["protocol"] == "qga"
        assert capabilities["methods"] == [
            "guest.get_host_name",
            "guest.info",
            "guest.ping",
            "guest.shutdown",
            "guest.sync_delimited",
            "va.capabilities",
            "va.ping",
            "va.shutdown",
        ]


async def test_a_file_is_read_and_its_handle_closed_whatever_happens(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked(COMMANDS + FILES) as (link, script):
        await until_ready(link)
        script.answers["guest-file-open"] = 1000
        script.answers["guest-file-read"] = {"count": 3, "buf-b64": "YWJj", "eof": True}
        assert await link.call("va.getfile", "/x", 5, 3) == b"abc"
        assert script.asked[-4:] == FILES
        script.answers["guest-file-read"] = ValueError("I/O error")
        with pytest.raises(RemoteFault, match=r"read failed: /x: I/O error"):
            await link.call("va.getfile", "/x")
        assert script.asked[-1] == "guest-file-close"
        script.answers["guest-file-read"] = "nothing"
        with trio.move_on_after(1):
            await link.call("va.getfile", "/x")
        assert script.asked[-1] == "guest-file-close"


@pytest.mark.parametrize(
    "answer",
    [
        {"count": 3, "buf-b64": "YWJjZGVm", "eof": True},
        {"buf-b64": "%", "eof": True},
        {"buf-b64": "YWJj"},
        [],
        None,
    ],
)
async def test_an_agent_that_answers_nonsense_is_not_believed(
    autojump_clock: trio.testing.MockClock, answer: Any
) -> None:
    async with linked(COMMANDS + FILES) as (link, script):
        await until_ready(link)
        script.answers["guest-file-open"] = 1000
        script.answers["guest-file-read"] = answer
        with pytest.raises(RemoteProtocolError):
            await link.call("va.getfile", "/x", 0, 3)
        assert script.asked[-1] == "guest-file-close"


async def test_a_guest_that_sends_no_answers_but_bytes_is_counted_and_harmless(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked() as (link, script):
        await until_ready(link)
        await link.call("va.ping")
        await script.stream.send_all(b"\xff{]garbage\n" * 1000 + b'{"event":"x"}' + b'{"return":1}')
        await trio.testing.wait_all_tasks_blocked()
        assert await link.call("va.ping") is None
        assert link.counters.drops["garbage"] > 1000
        assert link.counters.drops["late-reply"] == 1
