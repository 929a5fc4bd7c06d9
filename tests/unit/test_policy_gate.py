"""A policy in front of a link: every call passes it, and both ends know which was refused."""

from __future__ import annotations

import logging
from typing import cast

import pytest

from tests.unit.linkpair import Pair, linked, make_link
from virtagent_guest.config import ConfigError
from virtagent_guest.policy.guard import Guard
from virtagent_guest.policy.names import Glob
from virtagent_guest.policy.rules import Policy, Rule
from virtagent_protocol.errors import FailureKind, FaultCode, RemoteFault
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.values import Struct, Value

LOGS = Rule("logs", True, (Glob("va.getfile"),), read=(Glob("/var/log/**", path=True),))
POLICY = Policy(rules=(LOGS,), default=False, file="policy.toml", block=frozenset({"t.blocked"}))


def guarded(guard: Guard, done: list[str]) -> Registry:
    """A guest's registry, whose handlers note that they were run."""
    registry = Registry()

    @registry.method("va.getfile")
    async def getfile(call: Call, path: str) -> str:
        done.append(path)
        return path

    @registry.method("t.blocked")
    async def blocked(call: Call) -> None:
        done.append("blocked")

    @registry.method("t.inline", inline=True)
    async def inline(call: Call) -> None:
        done.append("inline")

    registry.gate = guard.gate("host")
    return registry


def guard_for(policy: Policy) -> Guard:
    return Guard(policy, lambda: policy, [])


async def refused(pair: Pair, method: str, *params: Value) -> RemoteFault:
    with pytest.raises(RemoteFault) as caught:
        await pair.host.call(method, *params)
    return caught.value


async def test_a_refused_call_is_not_run_and_is_distinct_from_one_that_does_not_exist() -> None:
    done: list[str] = []
    registry = guarded(guard_for(POLICY), done)
    async with linked(make_link(Role.HOST), make_link(Role.GUEST, registry)) as pair:
        assert await pair.host.call("va.getfile", "/var/log/nothing") == "/var/log/nothing"
        for method, params, rule in (
            ("va.getfile", ("/etc/shadow",), "default"),
            ("va.getfile", ("/var/log/../../etc/shadow",), "default"),
            ("t.blocked", (), "block-rpcs"),
            ("t.inline", (), "default"),
        ):
            fault = await refused(pair, method, *params)
            assert (fault.code, fault.kind) == (FaultCode.FORBIDDEN, FailureKind.FORBIDDEN)
            assert f"rule '{rule}'" in fault.message
        assert (await refused(pair, "t.none")).code == FaultCode.METHOD_NOT_FOUND
        await pair.host.call("va.ping")
    assert done == ["/var/log/nothing"]


async def test_each_call_of_a_multicall_is_judged_by_itself() -> None:
    done: list[str] = []
    calls: list[Value] = [
        {"methodName": "va.getfile", "params": ["/var/log/a"]},
        {"methodName": "va.getfile", "params": ["/etc/shadow"]},
        {"methodName": "t.blocked", "params": []},
    ]
    registry = guarded(guard_for(POLICY), done)
    async with linked(make_link(Role.HOST), make_link(Role.GUEST, registry)) as pair:
        results = cast("list[Value]", await pair.host.call("system.multicall", calls))
    assert done == ["/var/log/a"]
    assert results[0] == ["/var/log/a"]
    assert [cast(Struct, result)["faultCode"] for result in results[1:]] == [2, 2]


async def test_capabilities_tell_all_methods_and_which_are_forbidden_altogether() -> None:
    registry = guarded(guard_for(POLICY), [])
    async with linked(make_link(Role.HOST), make_link(Role.GUEST, registry)) as pair:
        capabilities = cast(Struct, await pair.host.call("va.capabilities"))
    assert {"t.blocked", "va.getfile"} <= set(cast("list[str]", capabilities["methods"]))
    assert capabilities["forbidden"] == ["t.blocked", "t.inline"]


async def test_without_a_policy_capabilities_do_not_speak_of_one() -> None:
    registry = guarded(guard_for(Policy()), [])
    async with linked(make_link(Role.HOST), make_link(Role.GUEST, registry)) as pair:
        assert "forbidden" not in cast(Struct, await pair.host.call("va.capabilities"))
        await pair.host.call("t.blocked")


async def test_both_ends_log_a_refusal_with_one_tag(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    registry = guarded(guard_for(POLICY), [])
    async with linked(make_link(Role.HOST), make_link(Role.GUEST, registry)) as pair:
        await refused(pair, "t.blocked")
    told = {r.name: r.getMessage() for r in caplog.records if "rule 'block-rpcs'" in r.getMessage()}
    assert set(told) == {"virtagent.rpc", "virtagent.calls"}
    tags = {line.partition(": ")[0] for line in told.values()}
    assert len(tags) == 1
    assert tags.pop().startswith("t.blocked ")


async def test_a_policy_that_cannot_be_loaded_again_leaves_the_old_one_in_force(
    caplog: pytest.LogCaptureFixture,
) -> None:
    following: list[Policy | ConfigError] = [ConfigError("policy.toml: rule 'x': broken"), Policy()]

    def load() -> Policy:
        item = following.pop(0)
        if isinstance(item, ConfigError):
            raise item
        return item

    guard = Guard(POLICY, load, [])
    registry = guarded(guard, [])
    async with linked(make_link(Role.HOST), make_link(Role.GUEST, registry)) as pair:
        guard.reload()
        assert "rule 'x': broken" in caplog.text
        await refused(pair, "t.blocked")
        guard.reload()
        await pair.host.call("t.blocked")
