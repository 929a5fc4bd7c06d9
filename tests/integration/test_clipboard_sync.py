"""A guest's clipboard and the host's, on two real X servers, with real processes in between."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.integration.clipboardlab import (
    BIG,
    DEADLINE,
    HTML,
    PNG,
    Lab,
    Syncing,
    contents,
    copy,
    environment,
    held,
    lab,
    program,
    session,
)
from tests.integration.displays import Environ, xvfb
from tests.integration.rudeowner import Manner, RudeOwner
from virtagent_protocol.clipboard.backend import Backend
from virtagent_protocol.errors import EXIT_STATUS, FailureKind

RICH = {"text_plain": "grün\r\n".encode(), "text_html": HTML, "image_png": PNG}


@pytest.fixture(scope="module")
def host_display() -> Iterator[Environ]:
    with xvfb() as display:
        yield display


@pytest.fixture(scope="module")
def guest_display() -> Iterator[Environ]:
    with xvfb() as display:
        yield display


@pytest.fixture(scope="module")
def vm(guest_display: Environ) -> Iterator[Lab]:
    with lab(guest_display) as made:
        yield made


@pytest.fixture
async def host(host_display: Environ) -> AsyncIterator[Backend]:
    """A program on the host's display, with an empty clipboard at first."""
    async with program(host_display) as clipboard:
        yield clipboard


@pytest.fixture
async def guest(guest_display: Environ) -> AsyncIterator[Backend]:
    """A program on the guest's display."""
    async with program(guest_display) as clipboard:
        yield clipboard


@asynccontextmanager
async def synced(vm: Lab, display: Environ, *arguments: str) -> AsyncIterator[Syncing]:
    with trio.fail_after(DEADLINE):
        async with vm.syncing(display, *arguments) as syncing:
            yield syncing


async def test_text_html_and_an_image_come_out_of_the_guest_as_they_were_copied(
    vm: Lab, guest: Backend
) -> None:
    with trio.fail_after(DEADLINE):
        await copy(guest, **RICH)
        listed = await vm.run("get", "--list", "--json")
        assert json.loads(listed.stdout) == {"types": ["text/plain", "text/html", "image/png"]}
        for name, data in RICH.items():
            got = await vm.run("get", "--type", name.replace("_", "/"))
            assert (got.returncode, got.stdout, got.stderr) == (0, data, b"")
        assert (await vm.run("get")).stdout == RICH["text_plain"]
        assert (await vm.run("get", "--type", "image/*")).stdout == PNG
        assert (await vm.run("get", "--session", str(os.getuid()))).stdout == RICH["text_plain"]
        assert (await vm.run("get", "--session", "99999")).returncode == EXIT_STATUS[FailureKind.NOT_THERE]


async def test_what_is_set_can_be_pasted_in_the_guest(vm: Lab, guest: Backend) -> None:
    with trio.fail_after(DEADLINE):
        for arguments, name, data in (
            ([], "text/plain", b"typed"),
            (["--type", "image/png"], "image/png", PNG),
        ):
            done = await vm.run("set", *arguments, stdin=data)
            assert (done.returncode, done.stderr) == (0, b"")
            assert held(await guest.read()) == {name: data}
        assert (await vm.run("get", "--type", "image/png")).stdout == PNG


async def test_what_is_not_there_is_told_as_such(vm: Lab, guest: Backend) -> None:
    with trio.fail_after(DEADLINE):
        await copy(guest, text_plain=b"x")
        got = await vm.run("get", "--type", "image/*")
        assert got.returncode == EXIT_STATUS[FailureKind.NOT_THERE]
        assert b"holds nothing of type image/*" in got.stderr


async def test_what_is_too_large_is_refused_at_both_ends_with_the_settings_that_say_so(
    vm: Lab, guest: Backend
) -> None:
    with trio.fail_after(DEADLINE):
        await copy(guest, image_png=BIG)
        got = await vm.run("get", "--max-size", "1")
        assert got.returncode == EXIT_STATUS[FailureKind.REFUSED]
        assert b"more than the 1048576 bytes that are let through: raise --max-size" in got.stderr
        assert got.stdout == b""


async def test_twenty_megabytes_are_carried_both_ways(
    vm: Lab, host_display: Environ, host: Backend, guest: Backend
) -> None:
    async with synced(vm, host_display) as syncing:
        await copy(host, image_png=BIG)
        while (await syncing.carried())["types"][0]["size"] != len(BIG):
            pass  # what there was at the start
        assert held(await guest.read()) == {"image/png": BIG}
        turned = BIG[::-1]
        await copy(guest, image_png=turned)
        assert (await syncing.carried())["direction"] == "from-guest"
        assert held(await host.read()) == {"image/png": turned}


async def test_each_copy_is_carried_once_with_all_its_types_and_without_an_echo(
    vm: Lab, host_display: Environ, host: Backend, guest: Backend
) -> None:
    await copy(host, text_plain=b"at the start")
    async with synced(vm, host_display) as syncing:
        assert (await syncing.carried())["direction"] == "to-guest"
        before = host.changes, guest.changes
        for number in range(4):
            data = {**RICH, "text_plain": b"copy %d" % number}
            source, target = (host, guest) if number % 2 == 0 else (guest, host)
            await copy(source, **data)
            said = await syncing.carried()
            assert said["direction"] == ("to-guest" if number % 2 == 0 else "from-guest")
            assert held(await target.read()) == held(contents(**data))
        # An echo of the last one would be carried before this.
        await copy(host, text_plain=b"the end")
        said = await syncing.carried()
        assert (said["direction"], said["types"][0]["size"]) == ("to-guest", len(b"the end"))
    # Each end has changed for each copy once: by whoever copied, or by the sync.
    with trio.fail_after(DEADLINE):
        for end, count in ((host, before[0]), (guest, before[1])):
            while end.changes < count + 5:
                await end.wait_change(end.changes)
            await end.offered()
            assert end.changes == count + 5


async def test_if_both_have_changed_the_hosts_counts(
    vm: Lab, host_display: Environ, host: Backend, guest: Backend
) -> None:
    await copy(host, text_plain=b"the host's")
    await copy(guest, text_plain=b"the guest's")
    async with synced(vm, host_display) as syncing:
        assert (await syncing.carried())["direction"] == "to-guest"
        assert held(await guest.read()) == {"text/plain": b"the host's"}
        await copy(guest, text_plain=b"and then")
        assert (await syncing.carried())["direction"] == "from-guest"
        assert held(await host.read()) == {"text/plain": b"and then"}


@pytest.mark.parametrize("way", ["--to-guest", "--from-guest"])
async def test_what_goes_the_other_way_stays_where_it_is(
    vm: Lab, host_display: Environ, host: Backend, guest: Backend, way: str
) -> None:
    await copy(host, text_plain=b"host 1")
    await copy(guest, text_plain=b"guest 1")
    source, target = (host, guest) if way == "--to-guest" else (guest, host)
    first, second = (b"host 1", b"host 2") if way == "--to-guest" else (b"guest 1", b"guest 2")
    async with synced(vm, host_display, way) as syncing:
        assert (await syncing.carried())["direction"] == way[2:]
        assert held(await target.read()) == {"text/plain": first}
        changes = source.changes
        await copy(target, text_plain=b"to be kept")
        await copy(source, text_plain=second)
        said = await syncing.carried()
        assert "error" not in said, said
        assert held(await target.read()) == {"text/plain": second}
        assert source.changes == changes + 1, "what was copied at the other end came here"


async def test_a_program_that_ends_in_the_middle_of_a_transfer_is_told_and_the_next_copy_is_carried(
    vm: Lab, host_display: Environ, guest_display: Environ, host: Backend, guest: Backend
) -> None:
    await copy(guest, text_plain=b"first")
    async with synced(vm, host_display, "--from-guest") as syncing:
        await syncing.carried()
        rude = await trio.to_thread.run_sync(RudeOwner, guest_display["DISPLAY"], Manner.VANISH)
        await trio.to_thread.run_sync(rude.serve)
        said = await syncing.carried()
        assert said["error"]["kind"] == "not ready"
        assert "ended in the middle of a transfer" in said["error"]["message"]
        await copy(guest, text_plain=b"second")
        assert (await syncing.carried())["types"][0]["size"] == len(b"second")
        assert held(await host.read()) == {"text/plain": b"second"}


async def test_a_guest_shares_only_what_its_configuration_says(
    guest_display: Environ, host_display: Environ, host: Backend, guest: Backend
) -> None:
    forbidden = EXIT_STATUS[FailureKind.FORBIDDEN]
    await copy(host, text_plain=b"one way")
    with lab(guest_display, "to-guest") as own:
        async with synced(own, host_display, "--to-guest") as syncing:
            assert "error" not in await syncing.carried()
            assert held(await guest.read()) == {"text/plain": b"one way"}
            for action in (["get"], ["get", "--list"], ["sync"]):
                refused = await own.run(*action, display=host_display)
                assert (refused.returncode, refused.stdout) == (forbidden, b"")
                assert b'set clipboard = "from-guest" or "both" in [session]' in refused.stderr
    with lab(guest_display, "off") as own, trio.fail_after(DEADLINE):
        for action in (["get"], ["set"], ["sync", "--from-guest"]):
            assert (await own.run(*action, display=host_display)).returncode == forbidden


async def test_a_display_of_the_hosts_that_ends_ends_the_sync_with_a_word(vm: Lab) -> None:
    with trio.fail_after(DEADLINE):
        with xvfb() as own:
            process = await trio.lowlevel.open_process(
                vm.command("sync"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(own)
            )
            assert process.stdout is not None
            assert b"syncing the clipboard with 'demo'" in await process.stdout.receive_some()
        async with process.stdout:
            assert await process.wait() == EXIT_STATUS[FailureKind.BROKEN]
        assert process.stderr is not None
        async with process.stderr:
            assert b"broken: the X server of display" in await process.stderr.receive_some()


async def test_without_a_display_on_the_host_sync_says_so(vm: Lab) -> None:
    with trio.fail_after(DEADLINE):
        done = await vm.run("sync")
        assert done.returncode == EXIT_STATUS[FailureKind.NOT_THERE]
        assert b"neither WAYLAND_DISPLAY nor DISPLAY is set" in done.stderr


async def test_a_session_agent_that_is_killed_and_started_again_is_heard_of_again(
    guest_display: Environ, host_display: Environ, host: Backend, guest: Backend
) -> None:
    with lab(guest_display) as own:
        await copy(host, text_plain=b"one")
        async with synced(own, host_display) as syncing:
            await syncing.carried()
            own.kill_session()
            await copy(host, text_plain=b"two")
            assert (await syncing.carried())["error"]["kind"] in ("not there", "not ready", "broken")
            with session(own.directory, guest_display):
                while "error" in (said := await syncing.carried()):
                    assert said["error"]["kind"] in ("not there", "not ready", "broken")
                assert said["direction"] == "to-guest"
                assert held(await guest.read()) == {"text/plain": b"two"}
