"""The table of `va_*` commands, bound to a VM (virtagent_host.commands)."""

import base64
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.nobody import NobodysClient
from virtagent_host.cli import MODULES
from virtagent_host.commands import COMMANDS, InvalidArguments, bind
from virtagent_host.events.intake import GuestEvents
from virtagent_host.forward.table import Forwards
from virtagent_protocol.errors import CallTimeout, NotReady, RemoteProtocolError, VirtagentError
from virtagent_protocol.stream import LinkStream
from virtagent_protocol.values import Value


class Guest:
    """A VM whose guest answers from a dict: method → value, or an error to raise."""

    def __init__(self, answers: Mapping[str, Value | VirtagentError]) -> None:
        self.answers = answers
        self.calls: list[tuple[Value, ...]] = []
        self.detached = False

    async def call(self, method: str, *params: Value) -> Value:
        self.calls.append((method, *params))
        await trio.lowlevel.checkpoint()
        if method not in self.answers:
            await trio.sleep_forever()
        answer = self.answers[method]
        if isinstance(answer, VirtagentError):
            raise answer
        return answer

    def open_stream(self) -> LinkStream:
        raise NotReady("there are no streams here")

    @property
    def forwards(self) -> Forwards:
        raise AssertionError("nothing is forwarded here")

    @property
    def events(self) -> GuestEvents:
        raise AssertionError("nothing happens here")

    async def renegotiate(self) -> Value:
        return await self.call("va.capabilities")

    async def wait_for(self, state: str) -> None:
        if state != self.status()["state"]:
            await trio.sleep_forever()

    def status(self) -> dict[str, Any]:
        return {"state": "greeting", "reason": "no answer to hello yet"}

    async def shut_down(self, deadline: float) -> dict[str, Any]:
        return {"by": "acpi", "seconds": deadline, "steps": []}

    async def detach(self) -> None:
        self.detached = True


async def run(guest: Guest, command: str, **arguments: object) -> Any:
    return await bind(guest)[command](arguments, NobodysClient())


async def test_ping_says_success_and_how_long_it_took(autojump_clock: trio.testing.MockClock) -> None:
    result = await run(Guest({"va.ping": None}), "va_ping")
    assert result["status"] == "success"
    assert isinstance(result["time_us"], int)


@pytest.mark.parametrize("mode", ["halt", "powerdown", "reboot"])
async def test_shutdown_passes_its_mode(mode: str) -> None:
    guest = Guest({"va.shutdown": None})
    assert await run(guest, "va_shutdown", shutdown_mode=mode) == {}
    assert guest.calls == [("va.shutdown", mode)]


@pytest.mark.parametrize(
    ("command", "arguments", "error"),
    [
        ("va_ping", {"x": 1}, "^Parameter 'x' is unexpected$"),
        ("va_shutdown", {}, "^Parameter 'shutdown_mode' is missing$"),
        (
            "va_shutdown",
            {"shutdown_mode": 1},
            "^Invalid parameter type for 'shutdown_mode', expected: string$",
        ),
        ("va_shutdown", {"shutdown_mode": "nap"}, "does not accept value 'nap'"),
        ("va_viewfile", {"filepath": "/x", "offset": -1}, "'offset' must be at least 0"),
        ("va_viewfile", {"filepath": "/x", "count": 0}, "'count' must be at least 1"),
        ("va_viewfile", {"filepath": "/x", "count": True}, "expected: integer"),
        ("va_viewfile", {"filepath": "/x", "count": 1.0}, "expected: integer"),
        ("va_viewfile", {"filepath": "/x", "format": "hex"}, "does not accept value 'hex'"),
        ("va_ping", {"timeout": "1"}, "Invalid parameter type for 'timeout', expected: number"),
        ("va_ping", {"timeout": float("nan")}, "must be a finite number"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_in_qemus_words(
    command: str, arguments: dict[str, object], error: str
) -> None:
    guest = Guest({})
    with pytest.raises(InvalidArguments, match=error):
        await run(guest, command, **arguments)
    assert guest.calls == []


async def test_a_guest_that_does_not_answer_is_given_up_with_the_links_state(
    autojump_clock: trio.testing.MockClock,
) -> None:
    start = trio.current_time()
    with pytest.raises(
        CallTimeout, match=r"va_ping was not done within 5 s \(the link is 'greeting': no answer"
    ):
        await run(Guest({}), "va_ping")
    assert trio.current_time() - start == pytest.approx(5)
    with pytest.raises(CallTimeout, match="within 2 s"):
        await run(Guest({}), "va_ping", timeout=2)


async def test_what_the_guest_refuses_goes_through_unchanged() -> None:
    error = NotReady("the guest is shutting down")
    with pytest.raises(NotReady) as caught:
        await run(Guest({"va.ping": error}), "va_ping")
    assert caught.value is error


async def test_a_file_is_given_as_text_or_as_base64() -> None:
    guest = Guest({"va.getfile": "Grüße".encode()})
    text = await run(guest, "va_viewfile", filepath="/etc/motd")
    assert text == {"content": "Grüße", "format": "utf8", "count": 7, "eof": True}
    coded = await run(guest, "va_viewfile", filepath="/etc/motd", format="base64", offset=3, count=7)
    assert base64.b64decode(coded["content"]) == "Grüße".encode()
    assert coded["eof"] is False
    assert guest.calls == [("va.getfile", "/etc/motd", 0), ("va.getfile", "/etc/motd", 3, 7)]


async def test_a_file_shorter_than_asked_for_is_at_its_end() -> None:
    assert (await run(Guest({"va.getfile": b"abc"}), "va_viewfile", filepath="/x", count=4))["eof"] is True


async def test_a_file_that_is_not_text_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidArguments, match=r"/x is not UTF-8 \(byte 1 of 3\): ask for format base64"):
        await run(Guest({"va.getfile": b"a\xff\0"}), "va_viewfile", filepath="/x")


async def test_dmesg_is_bytes_as_well() -> None:
    result = await run(Guest({"va.getdmesg": b"[0.0] \x1b[31mhi\n"}), "va_viewdmesg")
    assert result == {"content": "[0.0] \x1b[31mhi\n", "format": "utf8", "count": 14}


async def test_capabilities_lists_methods_in_order() -> None:
    struct: Value = {
        "version": "0.1.0",
        "protocol": "1.0",
        "agent": "va-guest",
        "methods": ["va.ping", "va.a"],
    }
    result = await run(Guest({"va.capabilities": struct}), "va_capabilities")
    assert result["methods"] == ["va.a", "va.ping"]
    assert result["version"] == "0.1.0"


@pytest.mark.parametrize(
    ("method", "command", "answer"),
    [
        ("va.capabilities", "va_capabilities", None),
        ("va.capabilities", "va_capabilities", {"version": 1}),
        ("va.capabilities", "va_capabilities", {"agent": "", "version": "", "protocol": "", "methods": [1]}),
        ("va.getdmesg", "va_viewdmesg", "text"),
    ],
)
async def test_an_answer_of_the_wrong_shape_is_the_guests_error(
    method: str, command: str, answer: Value
) -> None:
    with pytest.raises(RemoteProtocolError):
        await run(Guest({method: answer}), command)


async def test_wait_gives_the_status_or_a_timeout(autojump_clock: trio.testing.MockClock) -> None:
    assert (await run(Guest({}), "va_wait", until="greeting"))["state"] == "greeting"
    with pytest.raises(CallTimeout, match="within 3 s"):
        await run(Guest({}), "va_wait", until="ready", timeout=3)


async def test_detach_and_status_need_no_guest() -> None:
    guest = Guest({})
    assert (await run(guest, "va_status"))["state"] == "greeting"
    assert await run(guest, "va_detach") == {}
    assert guest.detached
    assert guest.calls == []


def test_every_command_says_what_it_does_returns_and_looks_like() -> None:
    for name, command in COMMANDS.items():
        assert name == command.name
        assert name.startswith("va_")
        assert command.help.endswith(".")
        assert command.returns
        assert command.example.split()[0] == name
        # Optional ones last: the monitor takes them by position.
        optional = [argument.optional for argument in command.arguments]
        assert optional == sorted(optional)


def test_each_module_of_the_command_line_has_the_commands_that_it_is_said_to_have() -> None:
    for module, names in MODULES.items():
        commands = import_module(f"virtagent_host.cli.{module}").COMMANDS
        assert tuple(command.name for command in commands) == names
