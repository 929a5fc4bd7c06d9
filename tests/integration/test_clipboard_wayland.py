"""The clipboard of a real Wayland compositor without a screen."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.integration.clipboardlab import (
    BIG,
    HTML,
    PNG,
    Lab,
    contents,
    copy,
    held,
    lab,
    program,
)
from tests.integration.displays import Environ, sway, xvfb
from virtagent_protocol.clipboard.backend import Backend, open_clipboard
from virtagent_protocol.clipboard.contents import TooLarge
from virtagent_protocol.errors import LinkBroken, NotThere, VirtagentError

DEADLINE = 60.0
TEXT = "grün — 日本\n".encode()


@pytest.fixture(scope="module")
def display() -> Iterator[Environ]:
    with sway() as made:
        yield made


@pytest.fixture(scope="module")
def vm(display: Environ) -> Iterator[Lab]:
    with lab(display) as made:
        yield made


@pytest.fixture
async def ours(display: Environ) -> AsyncIterator[Backend]:
    async with program(display) as clipboard:
        yield clipboard


@pytest.fixture
async def other(display: Environ) -> AsyncIterator[Backend]:
    async with program(display) as clipboard:
        yield clipboard


@pytest.mark.parametrize(("name", "data"), [("text/plain", TEXT), ("text/html", HTML), ("image/png", BIG)])
async def test_each_type_is_read_as_it_was_set_and_told_as_a_change(
    ours: Backend, other: Backend, name: str, data: bytes
) -> None:
    with trio.fail_after(DEADLINE):
        seen = ours.changes
        await copy(other, **{name.replace("/", "_"): data})
        await ours.wait_change(seen)
        # wl-copy offers all text as plain text, too.
        assert held(await ours.read([name])) == {name: data}


async def test_what_we_have_set_comes_back_as_it_was_set_though_only_its_text_is_offered(
    ours: Backend, other: Backend
) -> None:
    with trio.fail_after(DEADLINE):
        given = contents(image_png=PNG, text_html=HTML, text_plain=TEXT)
        await ours.write(given)
        assert (await ours.read()).alike(given)
        assert held(await other.read()) == {"text/plain": TEXT}
        await copy(other, text_plain=b"another")
        assert held(await ours.read()) == {"text/plain": b"another"}


async def test_what_is_too_large_is_refused_and_the_next_is_read(ours: Backend, other: Backend) -> None:
    with trio.fail_after(DEADLINE):
        await copy(other, image_png=BIG)
        with pytest.raises(TooLarge, match="more than the 1000000 bytes"):
            await ours.read(limit=1_000_000)
        await copy(other, text_plain=b"small")
        assert held(await ours.read(limit=1_000_000)) == {"text/plain": b"small"}


async def test_a_compositor_that_ends_is_told_to_all_who_wait() -> None:
    with trio.fail_after(DEADLINE):
        with sway() as own:
            block = open_clipboard(own)
            clipboard = await block.__aenter__()
            assert not await clipboard.read()
        with pytest.raises(LinkBroken, match="the Wayland compositor has ended"):
            await clipboard.wait_change(clipboard.changes)
        with pytest.raises(VirtagentError):
            await clipboard.read()
        await block.__aexit__(None, None, None)


async def test_a_compositor_that_shows_programs_no_clipboard_is_told_as_such_unless_there_is_an_x_server(
    tmp_path: Path,
) -> None:
    path = tmp_path / "wayland-7"
    words = "does not let programs without a window use the clipboard"
    with (
        trio.fail_after(DEADLINE),
        played_compositor(path, ["wl_seat"]),
        pytest.raises(NotThere, match=words),
    ):
        async with open_clipboard({"WAYLAND_DISPLAY": str(path)}):
            pass
    with trio.fail_after(DEADLINE), xvfb() as x11, played_compositor(path, ["wl_compositor"]):
        async with open_clipboard({"WAYLAND_DISPLAY": str(path), **x11}) as clipboard:
            assert not await clipboard.read()


async def test_programs_that_are_not_installed_are_told_with_their_package(
    display: Environ, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with trio.fail_after(DEADLINE), pytest.raises(NotThere, match="apt install wl-clipboard"):
        async with open_clipboard(display):
            pass


async def test_a_guest_with_wayland_and_a_host_with_x11_are_kept_alike_without_an_echo(
    vm: Lab, display: Environ, other: Backend
) -> None:
    with trio.fail_after(DEADLINE), xvfb() as x11:
        async with program(x11) as host:
            await copy(host, text_plain=b"at the start")
            async with vm.syncing(x11) as syncing:
                assert (await syncing.carried())["direction"] == "to-guest"
                # Of these the guest can show the text alone, which is not to come back as all there is.
                await copy(host, text_plain=TEXT, text_html=HTML)
                assert (await syncing.carried())["direction"] == "to-guest"
                assert held(await other.read()) == {"text/plain": TEXT}
                await copy(other, image_png=BIG)
                assert (await syncing.carried())["direction"] == "from-guest"
                assert held(await host.read()) == {"image/png": BIG}


class played_compositor:  # used as a function
    """Answers one client's get_registry and sync, as a compositor without a data-control protocol."""

    def __init__(self, path: Path, interfaces: list[str]) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._interfaces = interfaces
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            client.recv(4096)
            for number, name in enumerate(self._interfaces, 1):
                text = name.encode() + b"\0"
                text += b"\0" * (-len(text) % 4)
                body = struct.pack("=II", number, len(name) + 1) + text + struct.pack("=I", 1)
                client.sendall(struct.pack("=IHH", 2, 0, 8 + len(body)) + body)
            client.sendall(struct.pack("=IHHI", 3, 0, 12, 0))
