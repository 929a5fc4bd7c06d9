"""Extensions in a real guest: written there as docs/extensions.md shows, and called from the host."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator

import pytest
import trio

from tests.guest.lab import Attached, BridgeError
from tests.integration.test_extensions import STUBBORN, examples

DIRECTORY = "/etc/virtagent/methods.d"
#: Seconds for anything to happen in a guest under TCG on a busy machine.
DEADLINE = 60.0


async def write(attached: Attached, name: str, text: str) -> None:
    """Write a file as somebody at a shell of the guest would."""
    path = f"{DIRECTORY}/{name}"
    await attached.in_guest(f"cat >{path} <<'END'\n{text}END")
    if not name.endswith(".py"):
        await attached.in_guest(f"chmod +x {path}")


async def until(attached: Attached, condition: str) -> None:
    with trio.fail_after(DEADLINE):
        while (await attached.vm.console(condition)).status != 0:
            await trio.sleep(0.1)


@pytest.fixture
async def place(attached: Attached) -> AsyncIterator[Attached]:
    # `make install-guest` made it.
    assert (await attached.in_guest(f"stat -c '%U %a' {DIRECTORY}; ls {DIRECTORY}")).split() == [
        "root",
        "755",
    ]
    yield attached
    await attached.in_guest(f"rm -rf {DIRECTORY}/*")


async def test_what_the_page_shows_works_in_a_guest(place: Attached) -> None:
    for name, text in examples().items():
        await write(place, name, text)
    assert "va.x_df(" in await place.in_guest("va-guest extensions")
    lab = place.lab
    listed = await lab.succeed("x")
    assert 'df [path: string = "/"] -> string\n    Say how full' in listed
    assert "largest directory: string [count: integer = 5] -> array" in listed
    assert (await lab.succeed("x", "df", "/proc")).splitlines()[1].split()[-1] == "/proc"
    shown = json.loads(await lab.succeed("x", "largest", "directory=/etc/virtagent", "count=1", "--json"))
    size = int(await place.in_guest("stat -c %s /etc/virtagent/guest.toml"))
    assert shown == [{"name": "guest.toml", "bytes": size}]
    async with lab.client() as client:
        found = await client.execute("va_x_largest", directory="/etc/virtagent", count=1)
        assert found == shown
        assert {"name": "va_x_df"} in await client.execute("query-commands")
        with pytest.raises(BridgeError, match="Invalid parameter type for 'count', expected: integer"):
            await client.execute("va_x_largest", directory="/etc", count="many")
        with pytest.raises(BridgeError, match=r"FileNotFoundError: .*'/nonexistent'"):
            await client.execute("va_x_largest", directory="/nonexistent")
        assert {"va.x_df", "va.x_largest"} <= set((await client.execute("va_capabilities"))["methods"])


async def test_one_that_never_ends_is_ended_and_one_that_is_broken_harms_no_other(place: Attached) -> None:
    await write(place, "stubborn", STUBBORN)
    await write(place, "crash.py", "import os\ndef crash():\n    '''Crash.'''\n    os.abort()\n")
    await write(place, "broken", "#!/bin/sh\n# virtagent: It.\n# parm path: string\n")
    agent = await place.in_guest("systemctl show -P MainPID va-guest")
    error = await place.lab.fail(1, "x", "stubborn", "file=/run/stubborn")
    assert "va.x_stubborn was not done within 1 s, and was ended" in error
    await until(place, '! kill -0 "$(cat /run/stubborn)"')
    assert "killed by signal 6" in await place.lab.fail(1, "x", "crash")
    said = await place.in_guest("journalctl -u va-guest -o cat | grep 'no extension'")
    assert f"{DIRECTORY}/broken:3: 'parm' is none of" in said
    assert await place.in_guest("systemctl show -P MainPID va-guest") == agent

    rules = 'default = "allow"\n[[rule]]\nname = "no"\naction = "deny"\nmethods = ["va.x_c*"]\n'
    policy = "/etc/virtagent/policy.toml"
    loaded = "journalctl -u va-guest -o cat | grep -c '^policy: '"
    try:
        before = (await place.vm.console(loaded)).output.strip()
        await place.in_guest(f"printf %s {shlex.quote(rules)} >{policy}; systemctl reload va-guest")
        await until(place, f"[ $({loaded}) -gt {before} ]")
        assert "rule 'no'" in await place.lab.fail(5, "x", "crash")
    finally:
        before = (await place.vm.console(loaded)).output.strip()
        await place.in_guest(f"rm {policy}; systemctl reload va-guest")
        await until(place, f"[ $({loaded}) -gt {before} ]")
