"""What a policy says to calls of users' sessions; which commands take one."""

from __future__ import annotations

import pytest

from tests.unit.sessionpair import Played, session_links
from virtagent_guest.policy.guard import Guard
from virtagent_guest.policy.names import Glob
from virtagent_guest.policy.rules import Policy, Rule
from virtagent_guest.sessions.gate import SessionGate
from virtagent_host.command import InvalidArguments
from virtagent_host.commands import COMMANDS
from virtagent_host.frontend.vocabulary import parse_line
from virtagent_host.sessions import SESSION
from virtagent_protocol.errors import (
    FaultCode,
    RemoteFault,
)
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.values import Struct, Value


def guarded(policy: Policy) -> SessionGate:
    def load() -> Policy:
        raise AssertionError("nobody loads it again")

    return SessionGate(Guard(policy, load, []).gate("host"))


def rule(name: str, allow: bool, *methods: str, **conditions: tuple[Glob, ...]) -> Rule:
    return Rule(name, allow, tuple(map(Glob, methods)), **conditions)  # type: ignore[arg-type]


async def test_what_a_policy_forbids_is_forbidden_in_a_session_too() -> None:
    gate = guarded(Policy(block=frozenset({"va.exec"})))
    async with session_links(gate) as lab:
        await lab.add(1000, Played().methods)
        vm = lab.at(1000)
        with pytest.raises(
            RemoteFault, match=r"^va.exec in a session: blocked by .* rule 'block-rpcs'"
        ) as caught:
            await vm.call("va.exec", {"argv": ["id"]})
        assert caught.value.code == FaultCode.FORBIDDEN
        assert await vm.call("t.echo", 1) == 1
        # Nor behind a call of calls, in front or within.
        answer = vm.open_stream()
        request: Struct = {"session": "1000", "method": "va.exec", "params": [{}], "answer": int(answer.id)}
        results = await lab.machine.call(
            "system.multicall", [{"methodName": "va.session", "params": [request]}]
        )
        assert isinstance(results, list)
        assert isinstance(results[0], dict)
        assert results[0]["faultCode"] == FaultCode.FORBIDDEN
        with pytest.raises(RemoteFault, match=r"system\.multicall cannot be called in a session"):
            await vm.call("system.multicall", [{"methodName": "va.exec", "params": [{}]}])


async def test_a_policy_can_forbid_sessions_as_such() -> None:
    async with session_links(guarded(Policy(block=frozenset({"va.session"})))) as lab:
        await lab.add(1000, Played().methods)
        with pytest.raises(RemoteFault, match=r"^blocked by the guest's policy"):
            await lab.at(1000).call("t.echo", 1)


async def test_what_runs_in_a_session_is_judged_as_done_for_its_user() -> None:
    allowed = rule("walter's", True, "va.exec", user=(Glob("walter"),))
    gate = guarded(Policy(rules=(allowed, rule("no other", False, "va.exec")), file="rules"))
    offered = Registry(), Registry()

    async def exec_(call: Call, job: dict[str, Value]) -> str:
        """Tell that it would."""
        return "done"

    async with session_links(gate) as lab:
        for uid, user, methods in zip((1000, 1001), ("walter", "jane"), offered, strict=True):
            methods.method("va.exec")(exec_)
            await lab.add(uid, methods, user)
        assert await lab.at(1000).call("va.exec", {"argv": ["id"]}) == "done"
        jobs: list[Struct] = [{"argv": ["id"]}, {"argv": ["id"], "user": "walter"}]
        for job in jobs:
            with pytest.raises(RemoteFault, match="rule 'no other'"):
                await lab.at(1001).call("va.exec", job)


def test_every_command_that_asks_a_user_s_agent_takes_a_session() -> None:
    without = {name for name, command in COMMANDS.items() if not command.session}
    assert {"va_status", "va_shutdown", "va_freeze", "va_connect", "va_stats", "va_sessions"} <= without
    for name, command in COMMANDS.items():
        assert ([a for a in command.arguments if a.name == "session"] == [SESSION]) is (name not in without)
    for given in (1000, "1000", "user-3"):
        assert COMMANDS["va_ping"].complete({"session": given})["session"] == given
    for wrong in (True, 1.5, ["1000"]):
        with pytest.raises(InvalidArguments, match="'session', expected: string or integer"):
            COMMANDS["va_ping"].complete({"session": wrong})
    with pytest.raises(InvalidArguments, match="Parameter 'session' is unexpected"):
        COMMANDS["va_freeze"].complete({"session": 1000})
    assert parse_line(COMMANDS["va_ping"], "session=1000")["session"] == 1000
    assert parse_line(COMMANDS["va_ping"], "3 user-3")["session"] == "user-3"
