"""The clipboard of a real X server, shared with other people's programs, and with rude ones."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from Xlib import X
from Xlib.display import Display

from tests.integration.clipboardlab import BIG, HTML, PNG, contents, copy, held, program
from tests.integration.displays import Environ, xvfb, xvfb_process
from tests.integration.hostilelab import PYTHON_PATH
from tests.integration.rudeowner import Manner, RudeOwner
from virtagent_protocol.clipboard import x11
from virtagent_protocol.clipboard.backend import Backend, open_clipboard
from virtagent_protocol.clipboard.contents import TooLarge
from virtagent_protocol.clipboard.x11 import incoming
from virtagent_protocol.errors import CallTimeout, LinkBroken, NotReady, NotThere

DEADLINE = 30.0
TEXT = "grün — 日本\n".encode()


@pytest.fixture(scope="module")
def display() -> Iterator[Environ]:
    with xvfb() as made:
        yield made


@pytest.fixture
async def ours(display: Environ) -> AsyncIterator[Backend]:
    async with program(display) as clipboard:
        yield clipboard


@pytest.fixture
async def other(display: Environ) -> AsyncIterator[Backend]:
    async with program(display) as clipboard:
        yield clipboard


def _xclip(*arguments: str) -> list[str]:
    return ["xclip", "-selection", "clipboard", *arguments]


def _on(display: Environ) -> Environ:
    return {**display, "PATH": os.environ["PATH"]}


async def paste(display: Environ, target: str) -> bytes:
    """Return what xclip pastes of that type."""
    done = await trio.run_process(_xclip("-o", "-t", target), capture_stdout=True, env=_on(display))
    return done.stdout


async def xclip_copies(display: Environ, data: bytes, *arguments: str) -> None:
    """Have xclip copy: it stays in the background, without a pipe of ours, until others copy."""
    await trio.run_process(_xclip("-i", *arguments), stdin=data, stdout=subprocess.DEVNULL, env=_on(display))


async def until_held(clipboard: Backend, expected: dict[str, bytes]) -> None:
    """Wait until a clipboard holds this: xclip ends before the server has heard that it has copied."""
    while True:
        seen = clipboard.changes
        if held(await clipboard.read()) == expected:
            return
        await clipboard.wait_change(seen)


async def test_what_we_set_is_pasted_by_another_program_as_each_of_its_types(
    display: Environ, ours: Backend
) -> None:
    with trio.fail_after(DEADLINE):
        await copy(ours, text_plain=TEXT, text_html=HTML, image_png=PNG)
        offered = (await paste(display, "TARGETS")).decode().split()
        assert {"UTF8_STRING", "text/plain;charset=utf-8", "STRING", "text/html", "image/png"} <= set(offered)
        for target, data in (
            ("UTF8_STRING", TEXT),
            ("text/plain", TEXT),
            ("text/html", HTML),
            ("image/png", PNG),
            ("STRING", TEXT.decode().encode("latin-1", errors="replace")),
        ):
            assert await paste(display, target) == data


async def test_what_another_program_has_copied_is_read_and_told_as_a_change(
    display: Environ, ours: Backend
) -> None:
    with trio.fail_after(DEADLINE):
        seen = ours.changes
        await xclip_copies(display, TEXT)
        await ours.wait_change(seen)
        assert held(await ours.read()) == {"text/plain": TEXT}
        await xclip_copies(display, PNG, "-t", "image/png")
        await until_held(ours, {"image/png": PNG})


async def test_several_types_can_be_asked_for_in_one_request(display: Environ, ours: Backend) -> None:
    with trio.fail_after(DEADLINE):
        await copy(ours, text_plain=TEXT, text_html=HTML)
        answered = await trio.to_thread.run_sync(ask_for_many, display["DISPLAY"])
        assert answered == {"UTF8_STRING": TEXT, "text/html": HTML, "image/png": None}


def ask_for_many(name: str) -> dict[str, bytes | None]:
    """Ask for three targets with MULTIPLE, as ICCCM 2.6.2 says."""
    server = Display(name)
    window = server.screen().root.create_window(0, 0, 1, 1, 0, X.CopyFromParent)
    targets = ["UTF8_STRING", "text/html", "image/png"]
    places = [server.intern_atom(f"PLACE_{number}") for number in range(len(targets))]
    pairs = [atom for pair in zip(map(server.intern_atom, targets), places, strict=True) for atom in pair]
    where = server.intern_atom("PAIRS")
    window.change_property(where, server.intern_atom("ATOM_PAIR"), 32, pairs)
    clipboard = server.intern_atom("CLIPBOARD")
    window.convert_selection(clipboard, server.intern_atom("MULTIPLE"), where, X.CurrentTime)
    while server.next_event().type != X.SelectionNotify:
        pass
    refused = window.get_property(where, X.AnyPropertyType, 0, 100)
    assert refused is not None
    assert list(refused.value)[1::2] == [*places[:2], X.NONE]
    found = {}
    for target, place in zip(targets, places, strict=True):
        value = window.get_full_property(place, X.AnyPropertyType)
        found[target] = None if value is None else bytes(value.value)
    server.close()
    return found


async def test_twenty_megabytes_go_in_pieces_both_ways(display: Environ, ours: Backend) -> None:
    with trio.fail_after(DEADLINE):
        await copy(ours, image_png=BIG)
        assert await paste(display, "image/png") == BIG
        turned = BIG[::-1]
        await xclip_copies(display, turned, "-t", "image/png")
        await until_held(ours, {"image/png": turned})


async def test_text_that_is_not_utf_8_is_taken_for_latin_1(ours: Backend, other: Backend) -> None:
    with trio.fail_after(DEADLINE):
        await copy(other, text_plain="grün".encode("latin-1") + b"\0")
        assert held(await ours.read()) == {"text/plain": "grün".encode()}


async def test_what_we_have_set_comes_back_as_it_was_set(ours: Backend) -> None:
    with trio.fail_after(DEADLINE):
        given = contents(text_plain=TEXT, text_html=HTML)
        await ours.write(given)
        assert await ours.read() is given


async def test_an_empty_clipboard_holds_nothing(display: Environ) -> None:
    with xvfb() as new, trio.fail_after(DEADLINE):
        async with open_clipboard(new) as clipboard:
            assert await clipboard.offered() == []
            assert not await clipboard.read()


async def test_what_is_too_large_is_refused_and_the_next_is_read(ours: Backend, other: Backend) -> None:
    with trio.fail_after(DEADLINE):
        await copy(other, image_png=BIG)
        with pytest.raises(TooLarge, match="more than the 1000000 bytes"):
            await ours.read(limit=1_000_000)
        await copy(other, text_plain=b"small")
        assert held(await ours.read(limit=1_000_000)) == {"text/plain": b"small"}


async def test_an_owner_that_ends_in_the_middle_is_noticed_at_once(display: Environ, ours: Backend) -> None:
    with trio.fail_after(DEADLINE):
        rude = await trio.to_thread.run_sync(RudeOwner, display["DISPLAY"], Manner.VANISH)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, rude.serve)
            began = trio.current_time()
            with pytest.raises(NotReady, match="ended in the middle of a transfer"):
                await ours.read()
            assert trio.current_time() - began < incoming.PATIENCE


@pytest.mark.parametrize("manner", [Manner.STALL, Manner.SILENT])
async def test_an_owner_that_does_not_go_on_is_given_up_and_others_get_ours_meanwhile(
    display: Environ, ours: Backend, other: Backend, manner: Manner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "PATIENCE", 1.0)
    with trio.fail_after(DEADLINE):
        rude = await trio.to_thread.run_sync(RudeOwner, display["DISPLAY"], manner)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, rude.serve)
            with pytest.raises(CallTimeout, match="has not sent its UTF8_STRING"):
                await ours.read()
        rude.close()
        await copy(other, text_plain=b"after that")
        assert held(await ours.read()) == {"text/plain": b"after that"}


async def test_a_reader_that_ends_in_the_middle_does_no_harm(display: Environ, ours: Backend) -> None:
    with trio.fail_after(DEADLINE):
        await copy(ours, image_png=BIG)
        reader = await trio.lowlevel.open_process(
            _xclip("-o", "-t", "image/png"), stdout=subprocess.PIPE, env=_on(display)
        )
        reader.kill()
        await reader.wait()
        assert reader.stdout is not None
        await reader.stdout.aclose()
        assert await paste(display, "image/png") == BIG


async def test_a_server_that_is_stopped_is_waited_for_no_longer_than_it_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(x11.clipboard, "SERVER_TIME", 0.5)
    with trio.fail_after(DEADLINE), xvfb_process() as (own, server):
        async with open_clipboard(own) as clipboard:
            os.kill(server, signal.SIGSTOP)
            try:
                with pytest.raises(CallTimeout, match=r"does not answer within 0\.5 s"):
                    await clipboard.read()
                with pytest.raises(CallTimeout, match=r"does not answer within 0\.5 s"):
                    async with open_clipboard(own):
                        pass
            finally:
                os.kill(server, signal.SIGCONT)


async def test_a_server_that_ends_is_told_to_all_who_wait(display: Environ) -> None:
    with trio.fail_after(DEADLINE):
        lost: list[LinkBroken] = []
        with xvfb() as own:
            clipboard = await open_for_good(own)
        try:
            await clipboard.wait_change(clipboard.changes)
        except LinkBroken as error:
            lost.append(error)
        assert "has ended" in str(lost[0])
        with pytest.raises(LinkBroken, match="has ended"):
            await clipboard.read()
        with pytest.raises(LinkBroken, match="has ended"):
            await clipboard.write(contents(text_plain=b"x"))


async def open_for_good(display: Environ) -> Backend:
    clipboard = x11.clipboard.X11Clipboard(display["DISPLAY"])
    await clipboard.opened()
    return clipboard


def test_without_python_xlib_the_message_says_which_package_is_missing() -> None:
    script = """
import sys, trio
sys.modules["Xlib"] = None
from virtagent_protocol.clipboard.backend import open_clipboard
async def main():
    async with open_clipboard({"DISPLAY": ":0"}):
        pass
try:
    trio.run(main)
except Exception as error:
    print(error.kind.value, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": PYTHON_PATH},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.startswith("not there the clipboard of X11 needs python-xlib")
    assert "apt install python3-xlib" in done.stdout


# python-xlib forgets to close a socket that it could not connect.
@pytest.mark.filterwarnings("ignore:unclosed <socket", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "neither WAYLAND_DISPLAY nor DISPLAY is set"),
        ({"DISPLAY": ":4242"}, "no X server can be reached as display :4242"),
        ({"DISPLAY": "nonsense"}, "no X server can be reached as display nonsense"),
        (
            {"WAYLAND_DISPLAY": "/nowhere/wayland-0"},
            "no Wayland compositor can be reached at /nowhere/wayland-0",
        ),
    ],
)
async def test_where_there_is_no_display_the_message_says_so(environ: Environ, words: str) -> None:
    with trio.fail_after(DEADLINE):
        with pytest.raises(NotThere, match=words):
            async with open_clipboard(environ):
                pass
    gc.collect()
