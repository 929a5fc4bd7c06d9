"""One command of the QGA wire: when it is refused, and in whose words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from virtagent_guest.methods.qga.command import FREEZE, CommandRegistry, QgaError
from virtagent_guest.qga.dispatch import Dispatcher
from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.qga.messages import Command
from virtagent_protocol.registry import Gate
from virtagent_protocol.values import Value

registry = CommandRegistry()


@registry.command("guest-ping", safe=True)
async def ping() -> None:
    """Answer."""


@registry.command("guest-shutdown", success_response=False)
async def shutdown(mode: str = "powerdown") -> None:
    """End."""
    if mode != "powerdown":
        raise QgaError("mode is invalid")


@registry.command("guest-get-devices", disabled="it exists on Windows only")
async def devices() -> None:
    """List."""


@registry.command("guest-broken")
async def broken() -> None:
    """Fail."""
    raise RuntimeError("a secret")


COMMANDS = {command.name: command for command in registry}


async def ask(name: str, gate: Gate | None = None, **arguments: Any) -> Any:
    answer = await Dispatcher(gate or Gate(), COMMANDS).answer(Command(name, arguments, {"id": 1}))
    if answer is None:
        return None
    value = json.loads(answer)
    assert value.pop("id") == 1
    return value["error"] if "error" in value else value["return"]


async def test_a_command_without_a_result_answers_the_empty_object() -> None:
    assert await ask("guest-ping") == {}


async def test_a_successful_shutdown_is_not_answered_and_a_failed_one_is() -> None:
    assert await ask("guest-shutdown") is None
    assert await ask("guest-shutdown", mode="x") == {"class": "GenericError", "desc": "mode is invalid"}


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FREEZE, "frozen", True)


@pytest.mark.usefixtures("frozen")
async def test_while_frozen_only_what_is_safe_is_answered_in_qemu_gas_words() -> None:
    assert await ask("guest-ping") == {}
    assert await ask("guest-shutdown", wrong=1) == {
        "class": "CommandNotFound",
        "desc": "Command guest-shutdown has been disabled: the agent is in frozen state",
    }
    assert (await ask("nope"))["desc"] == "The command nope has not been found"


async def test_what_this_system_has_not_says_so() -> None:
    error = await ask("guest-get-devices")
    assert error["class"] == "CommandNotFound"
    assert "has been disabled" in error["desc"]


async def test_a_bug_is_answered_and_tells_nothing_of_its_inside() -> None:
    error = await ask("guest-broken")
    assert error["class"] == "GenericError"
    assert "internal error in guest-broken: RuntimeError" in error["desc"]
    assert "secret" not in error["desc"]


class Locked(Gate):
    """Forbids guest-ping altogether, and guest-shutdown by its arguments."""

    async def admit(self, method: str, params: list[Value]) -> None:
        if params == [{"mode": "halt"}]:
            raise Fault(FaultCode.FORBIDDEN, f"rule 'no-halt' forbids {method}")

    def forbidden(self, methods: list[str]) -> list[str] | None:
        return [method for method in methods if method == "guest.ping"]


async def test_what_a_policy_forbids_is_disabled_and_what_a_rule_refuses_is_an_error_with_its_name() -> None:
    assert await ask("guest-ping", Locked()) == {
        "class": "CommandNotFound",
        "desc": "Command guest-ping has been disabled: the command is not allowed",
    }
    assert await ask("guest-shutdown", Locked(), mode="halt") == {
        "class": "GenericError",
        "desc": "forbidden: rule 'no-halt' forbids guest.shutdown",
    }
    assert await ask("guest-shutdown", Locked()) is None
