"""A bug of ours in the link: it ends that link, log and status tell of it, and the service goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from tests.unit.linkpair import run_quietly
from virtagent_host.qemu.qmp import QmpConnection
from virtagent_host.service.keeper import SocketKeeper
from virtagent_host.service.service import Service
from virtagent_host.service.vm import Vm
from virtagent_protocol.errors import SessionReset
from virtagent_protocol.limits import Settings
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent, LinkState
from virtagent_protocol.messages import Request
from virtagent_protocol.registry import Registry
from virtagent_protocol.session import Role

DEADLINE = 10.0


async def test_an_internal_error_ends_its_link_is_told_and_the_next_link_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vm = Vm("vm", Settings())
    guests: list[Link] = []
    assert isinstance(vm.link, Link)
    serving = vm.link._serving
    broken = serving.on_request

    def break_once(request: Request) -> None:
        serving.on_request = broken  # type: ignore[method-assign]
        raise ZeroDivisionError("planted by the test")

    async def guest(stream: trio.SocketStream) -> None:
        link = Link(Role.GUEST, "guest 1", Registry(), boot_id="boot")
        link.hint(LinkEvent.PORT_OPENED, "test")
        guests.append(link)
        await run_quietly(link, stream)

    async def never(vm: Vm, qmp: QmpConnection | None) -> None:
        await trio.sleep_forever()

    serving.on_request = break_once  # type: ignore[method-assign]
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(tmp_path / "channel"))
    sock.listen()
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, guest, [trio.SocketListener(sock)])
            nursery.start_soon(
                Service(vm, [SocketKeeper(vm.name, vm.link, tmp_path / "channel")]).run,
                tmp_path / "bridge",
                never,
            )
            await vm.wait_for("ready")
            await guests[0].wait_for(lambda status: status.state is LinkState.READY)
            with pytest.raises(SessionReset):
                await guests[0].call("va.ping")
            await vm.link.wait_for(
                lambda status: "internal error" in str(vm.status()["figures"]["last-error"])
            )
            await vm.wait_for("ready")
            assert await vm.call("va.ping") is None
            assert len(guests) == 2
            nursery.cancel_scope.cancel()
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "internal error" in told[0].getMessage()
    assert told[0].exc_info
    assert "planted by the test" in caplog.text
