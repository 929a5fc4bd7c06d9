"""va.call_service as a guest meets it that does not keep to anything (virtagent_host.services.calls)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.unit.linkpair import linked, make_link
from virtagent_host.services.calls import ServiceCalls
from virtagent_host.services.file import ServicesDir
from virtagent_host.services.guard import ServicesGuard
from virtagent_protocol.errors import FaultCode, RemoteFault
from virtagent_protocol.outcome import read_outcome, read_status
from virtagent_protocol.session import Role
from virtagent_protocol.values import Struct

CALLER: Struct = {"pid": 1, "uid": 0, "gid": 0, "user": "root"}

POLICY = """\
[limits]
calls = 2

[[rule]]
name = "a"
action = "allow"
services = ["*"]
users = ["root"]
"""


@pytest.fixture
def calls(tmp_path: Path) -> ServiceCalls:
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "bin").mkdir()
    for name, script in (("cat", "cat"), ("yes", "yes")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return ServiceCalls("demo", ServicesGuard("demo", ServicesDir(str(tmp_path))))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"service": "../cat"}, FaultCode.INVALID_PARAMS),
        ({"service": None}, FaultCode.INVALID_PARAMS),
        ({"caller": "root"}, FaultCode.INVALID_PARAMS),
        ({"caller": {**CALLER, "uid": 1.0}}, FaultCode.INVALID_PARAMS),
        ({"caller": {**CALLER, "user": "other"}}, FaultCode.FORBIDDEN),
        ({"arguments": ["x"]}, FaultCode.FORBIDDEN),
        ({"arguments": ["x" * 40_000]}, FaultCode.TOO_LARGE),
        ({"service": "dog"}, FaultCode.NOT_THERE),
        ({"io": 1}, FaultCode.INVALID_PARAMS),
        ({"io": 0}, FaultCode.INVALID_PARAMS),
        ({"status": "the same"}, FaultCode.INVALID_PARAMS),
    ],
)
async def test_what_is_wrong_is_a_fault_and_costs_no_place(
    calls: ServiceCalls, change: Struct, code: FaultCode
) -> None:
    async with linked(make_link(Role.HOST, calls.methods()), make_link(Role.GUEST)) as pair:
        with trio.fail_after(20):
            for _ in range(3):  # one more than there are places
                io, status = pair.guest.open_stream(), pair.guest.open_stream()
                request: Struct = {"service": "cat", "caller": CALLER, "io": io.id, "status": status.id}
                if "status" in change:
                    change = {"status": io.id}
                with pytest.raises(RemoteFault) as caught:
                    await pair.guest.call("va.call_service", {**request, **change})
                assert caught.value.code == code, caught.value
            assert calls._allowance.running == 0


async def test_without_a_policy_all_is_forbidden() -> None:
    calls = ServiceCalls("demo", None)
    async with linked(make_link(Role.HOST, calls.methods()), make_link(Role.GUEST)) as pair:
        with pytest.raises(RemoteFault, match="this host does not let root call service 'cat'") as caught:
            await pair.guest.call(
                "va.call_service", {"service": "cat", "caller": CALLER, "io": 2, "status": 4}
            )
        assert caught.value.code == FaultCode.FORBIDDEN


async def test_a_guest_that_reads_nothing_holds_one_place_until_its_session_ends(calls: ServiceCalls) -> None:
    with trio.fail_after(20):
        async with linked(make_link(Role.HOST, calls.methods()), make_link(Role.GUEST)) as pair:
            io, status = pair.guest.open_stream(), pair.guest.open_stream()
            await pair.guest.call(
                "va.call_service", {"service": "yes", "caller": CALLER, "io": io.id, "status": status.id}
            )
            assert calls._allowance.running == 1
        while calls._allowance.running:
            await trio.sleep(0.01)


async def test_a_reset_of_the_stream_ends_the_service_and_its_status_is_told(calls: ServiceCalls) -> None:
    async with linked(make_link(Role.HOST, calls.methods()), make_link(Role.GUEST)) as pair:
        with trio.fail_after(20):
            io, status = pair.guest.open_stream(), pair.guest.open_stream()
            await pair.guest.call(
                "va.call_service", {"service": "cat", "caller": CALLER, "io": io.id, "status": status.id}
            )
            await io.send_all(b"half")
            assert await io.receive_some() == b"half"
            io.reset("cancelled")
            assert read_outcome(await read_status(status, "it"))["signal"] == 15
