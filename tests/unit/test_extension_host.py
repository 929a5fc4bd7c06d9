"""What the host makes of a guest's extensions, and of a guest that means it harm."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing

from virtagent_host.command import Client, InvalidArguments
from virtagent_host.extensions.calls import ExtensionCommands, Vm
from virtagent_host.extensions.described import command_names, describe, method_name, params
from virtagent_host.extensions.listing import list_extensions
from virtagent_host.frontend.extensions import usage
from virtagent_host.frontend.vocabulary import parse_words
from virtagent_host.qemu.errors import QemuError
from virtagent_protocol.errors import CallTimeout, FaultCode, RemoteFault, RemoteProtocolError
from virtagent_protocol.signature import EXTENSIONS_MAX, HELP_MAX
from virtagent_protocol.values import Value

LINE = (
    'va.x_df(path: string = "/", share: double = 0.5, note: string = null, items: array = []) '
    "-> struct within 8 s"
)
HELP = f"{LINE}\n\nSay it.\x1b[2J"


class Guest:
    """A guest that describes `va.x_df`, or says what it is told to."""

    def __init__(self, *methods: Value, text: Value = HELP, result: Value = None) -> None:
        self.offered = list(methods) or ["va.x_df"]
        self.text, self.result = text, result
        self.methods: frozenset[str] = frozenset()
        self.calls: list[tuple[Value, ...]] = []

    async def renegotiate(self) -> Value:
        self.methods = frozenset(name for name in self.offered if isinstance(name, str))
        return {"methods": self.offered}

    async def call(self, method: str, *given: Value) -> Value:
        await trio.lowlevel.checkpoint()
        if method == "system.methodHelp":
            return self.text
        if method not in self.methods:
            raise RemoteFault(FaultCode.METHOD_NOT_FOUND, "not listed")
        self.calls.append((method, *given))
        return self.result

    def status(self) -> dict[str, Any]:
        return {"state": "ready"}


class Silent(Guest):
    async def call(self, method: str, *given: Value) -> Value:
        await trio.sleep_forever()


NOBODY = cast(Client, None)


def commands(guest: Guest) -> ExtensionCommands:
    return ExtensionCommands(cast(Vm, guest))


async def listed(guest: Guest, name: str | None = None) -> Any:
    return await list_extensions(cast(Vm, guest), {"name": name, "timeout": 1}, NOBODY)


def test_a_description_is_a_command_with_checked_arguments() -> None:
    command = describe("va.x_df", HELP)
    assert command.help == "Say it.\\x1b[2J"
    assert command.argument("timeout").default == 8 + 5
    assert usage(command) == (
        'df [path: string = "/"] [share: number = 0.5] [note: string = null] [items: array = []] -> object'
    )
    assert params(command, command.complete({"share": 1, "note": None, "items": [1, {}]})) == [
        "/",
        1.0,
        None,
        [1, {}],
    ]
    assert parse_words(command, ["/a=b", "share=2"])["path"] == "/a=b"
    with pytest.raises(InvalidArguments, match="Invalid parameter type for 'path', expected: string"):
        command.complete({"path": None})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "does not describe"),
        (b"", "does not describe"),
        (["va.x_df() -> any within 1 s"], "does not describe"),
        ("x" * (HELP_MAX + 1), "does not describe"),
        ("", "no signature"),
        ("va.x_other() -> any within 1 s", "describes va.x_other"),
        ("va.x_df(timeout: int) -> any within 1 s", "argument 'timeout'"),
        ("va.x_df(a: any = " + "[" * 900, "no signature"),
    ],
)
async def test_a_description_of_another_form_is_the_guests_error(text: Value, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        await commands(Guest(text=text)).execute("va_x_df", {}, NOBODY)
    found = await listed(Guest(text=text))
    assert found["extensions"] == []
    assert why in found["unusable"][0]


def test_names_that_are_none_are_not_listed_and_there_is_a_bound() -> None:
    hostile = ["va.x_", "va.x_A", "va.x_a b", "va.x_\x1b", f"va.x_{'a' * 33}", "va.y", "va.x_a\n", "va_x_a"]
    assert command_names(["va.x_b", *hostile, "va.x_a"]) == ["va_x_a", "va_x_b"]
    assert len(command_names(f"va.x_a{number}" for number in range(10000))) == EXTENSIONS_MAX
    assert [method_name(name) for name in ("va_x_", "va_x_A", "va.x_a", "va_ping")] == [None] * 4


async def test_a_list_of_methods_that_is_none_is_the_guests_error() -> None:
    guest = Guest(1, None, ["va.x_df"], "va.x_df")
    assert [entry["name"] for entry in (await listed(guest))["extensions"]] == ["va_x_df"]
    assert (await listed(guest, "va_x_other"))["extensions"] == []
    guest.offered = cast(Any, "va.x_df")
    with pytest.raises(RemoteProtocolError):
        await listed(guest)


async def test_an_extension_that_came_after_the_list_is_called() -> None:
    guest = Guest(result={"a": 1})
    assert await commands(guest).execute("va_x_df", {"path": "/var"}, NOBODY) == {"a": 1}
    assert guest.calls == [("va.x_df", "/var", 0.5, None, [])]
    assert commands(guest).names() == ["va_x_df"]


async def test_a_result_that_json_does_not_carry_is_the_guests_error() -> None:
    guest = Guest(result={"a": [b"bytes"]})
    with pytest.raises(RemoteProtocolError, match="holds bytes"):
        await commands(guest).execute("va_x_df", {}, NOBODY)


async def test_a_name_that_is_none_is_not_asked_for() -> None:
    guest = Guest()
    for name in ("va_x_", "va_x_A", "va_x_../a"):
        with pytest.raises(QemuError, match="has not been found") as caught:
            await commands(guest).execute(name, {}, NOBODY)
        assert caught.value.error_class == "CommandNotFound"


@pytest.mark.parametrize(("given", "seconds"), [({}, 5), ({"timeout": 2}, 2), ({"timeout": "x"}, 5)])
async def test_a_guest_that_does_not_answer_costs_no_more_than_the_deadline(
    autojump_clock: trio.testing.MockClock, given: dict[str, object], seconds: float
) -> None:
    begun = trio.current_time()
    with pytest.raises(CallTimeout):
        await commands(Silent()).execute("va_x_df", given, NOBODY)
    assert trio.current_time() - begun == pytest.approx(seconds)
