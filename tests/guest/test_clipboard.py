"""The clipboard of a user's session in a real guest, on an X server and on a Wayland compositor there.

The host's side is an X server of the test. What copies and pastes in the guest is nothing of ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.guest.lab import Attached
from tests.integration.clipboardlab import PNG, Syncing, copy, held, program, syncing
from tests.integration.displays import Environ, xvfb

#: Seconds for anything, under TCG on a busy machine.
LONG = 240.0
USER = "ann"
BIG = os.urandom(1024 * 1024) * 20
TEXT = "grün — 日本\n".encode()

#: Holds the X clipboard with what is in a file, as one type, until another program copies.
X_COPY = """
import sys
from Xlib import X, Xatom
from Xlib.display import Display
from Xlib.protocol.event import SelectionNotify
d = Display()
w = d.screen().root.create_window(0, 0, 1, 1, 0, X.CopyFromParent)
target = d.intern_atom(sys.argv[1])
w.set_selection_owner(d.intern_atom("CLIPBOARD"), X.CurrentTime)
d.flush()
open(sys.argv[2] + ".held", "w").close()
while (e := d.next_event()).type != X.SelectionClear:
    if e.type == X.SelectionRequest:
        where = e.property
        if e.target == d.intern_atom("TARGETS"):
            e.requestor.change_property(where, Xatom.ATOM, 32, [target])
        elif e.target == target:
            e.requestor.change_property(where, target, 8, open(sys.argv[2], "rb").read())
        else:
            where = X.NONE
        e.requestor.send_event(SelectionNotify(
            time=e.time, requestor=e.requestor, selection=e.selection, target=e.target, property=where))
        d.flush()
"""

SETUP = f"""
useradd -m {USER}
sed -i 's/^clipboard = .*/clipboard = "both"/' /etc/virtagent/guest.toml
loginctl enable-linger {USER}
until [ -S /run/user/$(id -u {USER})/systemd/private ]; do sleep 0.2; done
systemd-run --quiet --uid={USER} --unit=x-display Xvfb :7 -screen 0 64x64x8 -nolisten tcp -noreset
until [ -S /tmp/.X11-unix/X7 ]; do sleep 0.2; done
"""
SWAY = f"""
echo 'xwayland disable' >/tmp/sway.conf
systemd-run --quiet --uid={USER} --unit=wayland-display -E XDG_RUNTIME_DIR=/run/user/$(id -u {USER}) \\
    -E WLR_BACKENDS=headless -E WLR_LIBINPUT_NO_DEVICES=1 -E WLR_RENDERER=pixman sway --config /tmp/sway.conf
until [ -S /run/user/$(id -u {USER})/wayland-1 ]; do sleep 0.2; done
"""
TEARDOWN = f"""
systemctl stop x-display x-copy wayland-display 2>/dev/null
loginctl disable-linger {USER}
loginctl terminate-user {USER}
while pgrep -u {USER} >/dev/null; do sleep 0.2; done
userdel --remove {USER} 2>/dev/null
sed -i 's/^clipboard = .*/clipboard = "off"/' /etc/virtagent/guest.toml
true
"""


class Guest:
    """A user's session in the guest."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached

    async def root(self, command: str) -> str:
        done = await self.attached.vm.console(f"set -e\n{command}", timeout=LONG)
        assert done.status == 0, done.output
        return done.output

    async def user(self, command: str) -> str:
        """Run a command as the user."""
        runtime = f"XDG_RUNTIME_DIR=/run/user/$(id -u {USER})"
        return await self.root(f"runuser -u {USER} -- env {runtime} bash -c {shlex.quote(command)}")

    async def put(self, path: str, data: bytes) -> None:
        """Make a file that the user can read."""
        await self.root(f"base64 -d <<<{base64.b64encode(data).decode()} >{path}; chmod 644 {path}")

    async def start_agent(self, **display: str) -> None:
        """Start the session's agent, and only then tell the user's manager of the display."""
        await self.user("systemctl --user stop va-guest-session")
        await self.user("systemctl --user unset-environment DISPLAY WAYLAND_DISPLAY")
        await self.user("systemctl --user start va-guest-session")
        with trio.fail_after(LONG):
            while not json.loads(await self.attached.lab.succeed("sessions", "--json"))["sessions"]:
                await trio.sleep(0.2)
        settings = " ".join(f"{name}={value}" for name, value in display.items())
        await self.user(f"systemctl --user set-environment {settings}")

    async def host(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run `va-host clipboard demo …` that must succeed."""
        done = await self.attached.lab.run(
            "clipboard", self.attached.lab.name, *arguments, stdin=stdin, timeout=LONG
        )
        assert done.status == 0, done
        return done.stdout

    async def x_copy(self, target: str, data: bytes) -> None:
        """Copy, as a program of the guest's X server does."""
        await self.put("/tmp/copied", data)
        await self.put("/tmp/x_copy.py", X_COPY.encode())
        await self.root("systemctl stop x-copy 2>/dev/null || true; rm -f /tmp/copied.held")
        await self.root(
            f"systemd-run --quiet --uid={USER} --unit=x-copy --collect -E DISPLAY=:7 "
            f"python3 /tmp/x_copy.py {target} /tmp/copied"
        )
        await self.root("until [ -e /tmp/copied.held ]; do sleep 0.1; done")

    @asynccontextmanager
    async def syncing(self, display: Environ) -> AsyncIterator[Syncing]:
        """Run `va-host clipboard demo sync --json` on a display of the host."""
        environ = {name: value for name, value in os.environ.items() if name != "WAYLAND_DISPLAY"}
        command = self.attached.lab.command_line("clipboard", self.attached.lab.name, "sync", "--json")
        async with syncing(command, {**environ, **display}) as sync:
            yield sync


async def carried(syncing: Syncing, direction: str, size: int) -> dict[str, Any]:
    """Return the next thing of that size that was carried."""
    while True:
        said = await syncing.carried()
        if not said.get("error") and sum(entry["size"] for entry in said["types"]) == size:
            assert said["direction"] == direction, said
            return said


@pytest.fixture(scope="module")
def host_display() -> Iterator[Environ]:
    with xvfb() as display:
        yield display


@pytest.fixture
async def session(attached: Attached) -> AsyncIterator[Guest]:
    guest = Guest(attached)
    try:
        with trio.fail_after(LONG):
            await guest.root(SETUP)
        yield guest
    finally:
        with trio.CancelScope(shield=True):
            await attached.vm.console(TEARDOWN, timeout=LONG)


async def test_a_users_x_clipboard_and_the_hosts(session: Guest, host_display: Environ) -> None:
    await session.start_agent(DISPLAY=":7")
    with trio.fail_after(LONG):
        await session.x_copy("UTF8_STRING", TEXT)
        assert await session.host("get") == TEXT
        await session.x_copy("text/html", b"<b>x</b>")
        assert await session.host("get", "--list") == b"text/html\n"
        await session.host("set", "--type", "image/png", stdin=PNG)
        assert await session.host("get", "--type", "image/png") == PNG
    with trio.fail_after(LONG):
        async with program(host_display) as host, session.syncing(host_display) as syncing:
            await copy(host, text_plain=TEXT, text_html=b"<i>y</i>", image_png=BIG)
            await carried(syncing, "to-guest", len(TEXT) + 8 + len(BIG))
            got = await session.host("get", "--type", "image/png")
            assert hashlib.sha256(got).digest() == hashlib.sha256(BIG).digest()
            assert await session.host("get", "--type", "text/html") == b"<i>y</i>"
            await session.x_copy("UTF8_STRING", b"copied in the guest")
            await carried(syncing, "from-guest", len(b"copied in the guest"))
            assert held(await host.read()) == {"text/plain": b"copied in the guest"}
            # The agent of the session is killed; systemd starts it again, and the sync finds it.
            await session.user("systemctl --user kill -s KILL va-guest-session")
            await copy(host, text_plain=b"after the crash")
            await carried(syncing, "to-guest", len(b"after the crash"))
            assert await session.host("get") == b"after the crash"


async def test_a_users_wayland_clipboard_and_the_hosts(session: Guest, host_display: Environ) -> None:
    await session.root(SWAY)
    await session.start_agent(WAYLAND_DISPLAY="wayland-1")
    wayland = "WAYLAND_DISPLAY=wayland-1"
    with trio.fail_after(LONG):
        async with program(host_display) as host, session.syncing(host_display) as syncing:
            await copy(host, text_plain=TEXT)
            await carried(syncing, "to-guest", len(TEXT))
            assert (await session.user(f"{wayland} wl-paste --no-newline | base64 -w0")) == base64.b64encode(
                TEXT
            ).decode()
            await copy(host, image_png=BIG)
            await carried(syncing, "to-guest", len(BIG))
            digest = await session.user(f"{wayland} wl-paste --type image/png | sha256sum")
            assert digest.split()[0] == hashlib.sha256(BIG).hexdigest()
            await session.user(f"{wayland} wl-copy copied in the guest >/dev/null 2>&1 </dev/null")
            await carried(syncing, "from-guest", len(b"copied in the guest"))
            assert held(await host.read()) == {"text/plain": b"copied in the guest"}


async def test_a_guest_whose_configuration_does_not_say_so_shares_nothing(session: Guest) -> None:
    await session.root("sed -i 's/^clipboard = .*/clipboard = \"to-guest\"/' /etc/virtagent/guest.toml")
    await session.start_agent(DISPLAY=":7")
    with trio.fail_after(LONG):
        await session.host("set", stdin=b"one way")
        said = await session.attached.lab.fail(5, "clipboard", "get")
        assert 'set clipboard = "from-guest" or "both" in [session]' in said
