"""Who calls a service of the host: what the kernel says, whatever the program does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator

import pytest
import trio

# What is imported later, the user that this program becomes might not be able to read.
import virtagent_protocol.link
import virtagent_protocol.nursery  # noqa: F401
from tests.integration.serviceslab import DEADLINE, Lab, environ, lab
from virtagent_guest.calls.client import run_call
from virtagent_guest.local.client import connect
from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.machine import boot_id  # noqa: F401
from virtagent_protocol.outcome import read_status
from virtagent_protocol.values import Struct

NOBODY = 65534

#: Imports what it needs, becomes another user, then runs a function of this module with its arguments.
_AS_NOBODY = f"""
import os, sys
import tests.integration.test_services_callers as here
# Loads an encoding, which is a module, too.
here.boot_id()
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
getattr(here, sys.argv[1])(*sys.argv[2:])
"""

POLICY = f"""\
[limits]
calls = 100
calls-per-user = 100

[[rule]]
name = "nobody"
action = "allow"
services = ["who", "wait"]
users = [{NOBODY}]
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE):
        yield


async def as_nobody(demo: Lab, function: str) -> object:
    # Others are to reach the socket, and that alone.
    os.chmod(demo.directory, 0o711)
    result = await trio.run_process(
        [sys.executable, "-c", _AS_NOBODY, function, demo.socket],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environ(),
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def forge(path: str) -> None:
    """Call a service with a caller of our own making, and print what it made of that."""

    async def run() -> str:
        async with connect(path) as link:
            io, status = link.open_stream(), link.open_stream()
            root: Struct = {"pid": 1, "uid": 0, "gid": 0, "user": "root"}
            forged: Struct = {"service": "who", "caller": root, "io": io.id, "status": status.id}
            await link.call("va.call_service", forged)
            await io.send_eof()
            output = b"".join([bytes(part) async for part in io])
            await read_status(status, "it")
            return output.decode()

    print(json.dumps(trio.run(run)))


def crowd(path: str) -> None:
    """Begin more calls than a user has places for; print the words of those that were refused."""
    refused: list[str] = []

    async def one(nursery: trio.Nursery) -> None:
        async def forget(data: bytes) -> None:
            await trio.lowlevel.checkpoint()

        async with connect(path) as link:
            try:
                await run_call(link, "wait", (), trio.sleep_forever, forget)
            except VirtagentError as error:
                refused.append(str(error))
                if len(refused) == 2:
                    nursery.cancel_scope.cancel()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one, nursery)

    trio.run(run)
    print(json.dumps(refused))


async def test_a_program_cannot_say_that_it_is_somebody_else() -> None:
    with lab(policy=POLICY) as demo:
        demo.service("who", 'echo "$VA_CALLER_UID $VA_CALLER_GID $VA_CALLER_USER"')
        assert await as_nobody(demo, "forge") == f"{NOBODY} {NOBODY} nobody\n"
        # Root is another user, whom no rule allows it.
        assert (await demo.call("who")).returncode == 5


async def test_the_agent_keeps_a_user_from_taking_the_places_of_all() -> None:
    with lab(policy=POLICY) as demo:
        demo.service("wait", "cat")
        refused = await as_nobody(demo, "crowd")
        assert isinstance(refused, list)
        assert len(refused) == 2
        assert all("8 calls of this user and 8 in all are running" in words for words in refused)
