"""va-guest with a policy, as a process: what it refuses, and explains, and does when the policy changes."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import trio

from tests.integration.test_guest_agent import ROOT, Agent, ServiceManager, agent, host_link
from virtagent_guest.config import DEFAULT_PORT, Channel, Config, dump, load
from virtagent_guest.policy.settings import PolicySettings
from virtagent_protocol.errors import FaultCode, RemoteFault
from virtagent_protocol.values import Struct

#: Seconds for a whole test.
DEADLINE = 30.0

RULES = """\
default = "deny"

[[rule]]
name = "logs only"
action = "allow"
methods = ["va.getfile"]
read = ["{tree}/logs/**"]
"""


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE):
        yield


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[ServiceManager]:
    async with ServiceManager(tmp_path / "notify") as manager:
        yield manager


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a policy, its configuration, and files: what it allows, and a link out of there."""
    tree = Path(os.path.realpath(tmp_path))
    (tree / "logs").mkdir()
    (tree / "logs/log").write_text("line\n")
    (tree / "secret").write_text("secret\n")
    (tree / "logs/link").symlink_to("../secret")
    (tree / "policy.toml").write_text(RULES.format(tree=tree))
    (tree / "guest.toml").write_text(f'[policy]\nfile = "{tree}/policy.toml"\n')
    return tree


async def until_logged(guest: Agent, text: str) -> None:
    while text not in guest.log:
        await trio.sleep(0.02)


async def va_guest(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "virtagent_guest", *arguments]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}"}
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=environ)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_files_beyond_the_rule_are_forbidden_however_they_are_named(
    tree: Path, manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tree / "socket")
    async with agent(tree, "-c", "unix-listen", "-p", path, NOTIFY_SOCKET=manager.address) as guest:
        await manager.wait_for("READY=1")
        async with host_link(await trio.open_unix_socket(path)) as link:
            assert await link.call("va.getfile", f"{tree}/logs/log") == b"line\n"
            with caplog.at_level(logging.WARNING):
                for name in ("secret", "logs/../secret", "logs/link", "logs//./link"):
                    with pytest.raises(RemoteFault, match="rule 'default'") as caught:
                        await link.call("va.getfile", f"{tree}/{name}")
                    assert caught.value.code == FaultCode.FORBIDDEN
            capabilities = cast(Struct, await link.call("va.capabilities"))
            assert "va.shutdown" in cast("list[str]", capabilities["forbidden"])
            assert "va.getfile" not in cast("list[str]", capabilities["forbidden"])
        # One call, one id, in the log of either end; what was asked for is in neither.
        tags = [r.getMessage().split()[1] for r in caplog.records if r.name == "virtagent.calls"]
        assert len(tags) == 4
        for tag in tags:
            assert f"va.getfile {tag} forbidden: blocked by the guest's policy: rule 'default'" in guest.log
        assert "secret" not in guest.log


async def test_sighup_loads_the_policy_again_unless_it_is_broken(tree: Path, manager: ServiceManager) -> None:
    path = str(tree / "socket")
    policy = tree / "policy.toml"
    async with agent(tree, "-c", "unix-listen", "-p", path, NOTIFY_SOCKET=manager.address) as guest:
        await manager.wait_for("READY=1")
        async with host_link(await trio.open_unix_socket(path)) as link:
            policy.write_text(policy.read_text().replace("methods", "method"))
            guest.process.send_signal(signal.SIGHUP)
            await until_logged(guest, "that of before stays in force")
            assert f"{policy}: rule 'logs only' (line 3): no such key: 'method'" in guest.log
            await link.call("va.getfile", f"{tree}/logs/log")
            with pytest.raises(RemoteFault, match="rule 'default'"):
                await link.call("va.getfile", f"{tree}/secret")

            policy.write_text('default = "allow"\n')
            guest.process.send_signal(signal.SIGHUP)
            await until_logged(guest, "0 rules of")
            assert await link.call("va.getfile", f"{tree}/secret") == b"secret\n"

            (tree / "guest.toml").write_text('[policy]\nblock-rpcs = ["va.getfile"]\n')
            guest.process.send_signal(signal.SIGHUP)
            await until_logged(guest, "a block list of 1")
            with pytest.raises(RemoteFault, match="rule 'block-rpcs'"):
                await link.call("va.getfile", f"{tree}/secret")


async def test_an_agent_does_not_start_with_a_broken_policy(tree: Path) -> None:
    (tree / "policy.toml").write_text('default = "deny"\n[[rule]\n')
    config = ("--config", str(tree / "guest.toml"))
    status, _, stderr = await va_guest(*config, "-c", "unix-listen", "-p", str(tree / "socket"))
    assert status == 2
    assert f"va-guest: {tree}/policy.toml is not TOML: " in stderr
    assert "at line 2" in stderr


async def test_lists_work_as_those_of_qemu_ga(tree: Path, manager: ServiceManager) -> None:
    path = str(tree / "socket")
    (tree / "guest.toml").write_text('[policy]\nallow-rpcs = ["va.getfile"]\n')
    lists = ("--allow-rpcs=va.getdmesg,va.shutdown", "--blacklist", "va.shutdown")
    async with agent(tree, "-c", "unix-listen", "-p", path, *lists, NOTIFY_SOCKET=manager.address):
        await manager.wait_for("READY=1")
        async with host_link(await trio.open_unix_socket(path)) as link:
            await link.call("va.getfile", f"{tree}/secret")
            with pytest.raises(RemoteFault, match="rule 'block-rpcs'"):
                await link.call("va.shutdown")
    status, names, _ = await va_guest("--block-rpcs", "help")
    assert status == 0
    assert {"va.getfile", "guest-info"} <= set(names.split())


async def test_why_explains_a_decision_with_file_and_line(tree: Path) -> None:
    config = ("--config", str(tree / "guest.toml"))
    why = ("policy", "why", *config)
    allowed = await va_guest(*why, "va.getfile", f"{tree}/logs/log")
    where = f"{tree}/policy.toml, line 3"
    assert allowed[:2] == (
        0,
        f"va.getfile: allowed by 'logs only' ({where}): it is the first rule that matches\n",
    )
    status, shown, _ = await va_guest(*why, "--json", "va.getfile", f"{tree}/logs/link")
    assert status == 5
    assert json.loads(shown) == {
        "method": "va.getfile",
        "allowed": False,
        "rule": "default",
        "why": "no rule matches, and the default denies that",
        "file": f"{tree}/policy.toml",
        "line": None,
        "resolved": {f"{tree}/logs/link": f"{tree}/secret"},
    }
    status, shown, note = await va_guest(*why, "-b", "va.getfile", "guest-fly")
    assert (status, note) == (5, "va-guest: note: this agent has no method 'guest.fly'\n")


async def test_check_tells_a_good_file_from_a_bad_one(tree: Path) -> None:
    policy = tree / "policy.toml"
    assert await va_guest("policy", "check", str(policy)) == (0, f"{policy}: 1 rules, default deny\n", "")
    policy.write_text(RULES.replace('"allow"', '"alow"'))
    status, _, stderr = await va_guest("policy", "check", str(policy))
    assert (status, stderr) == (
        2,
        f'va-guest: {policy}: rule \'logs only\' (line 3): action must be "allow" or "deny"\n',
    )


async def test_the_configuration_is_dumped_as_a_file_that_says_the_same(tree: Path) -> None:
    config = Config(
        Channel("isa-serial", '/dev/"tty\\S1', 9600, "two"),
        verbose=True,
        policy=PolicySettings("/etc/p.toml", ("va.getfile",), ("guest-exec", "b\x7f")),
    )
    file = tree / "dumped.toml"
    file.write_text(dump(config))
    assert load(str(file)) == config
    status, dumped, _ = await va_guest("--config", str(tree / "guest.toml"), "-D", "-b", "x,y")
    assert status == 0
    file.write_text(dumped)
    again = load(str(file))
    assert again.policy == PolicySettings(f"{tree}/policy.toml", None, ("x", "y"))
    assert again.channel.path == DEFAULT_PORT
