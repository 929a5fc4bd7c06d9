"""The table of the guest agent's commands: registration, the check before a handler, and XML-RPC."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from virtagent_guest.methods.qga import COMMANDS, basic
from virtagent_guest.methods.qga.bindings import REPLY_MAX, xmlrpc_methods
from virtagent_guest.methods.qga.command import (
    COMMAND_NOT_FOUND,
    FREEZE,
    GENERIC_ERROR,
    Caller,
    Command,
    CommandRegistry,
    QgaError,
)
from virtagent_guest.methods.qga.schema import BOOL, Alternate, Enum
from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import FailureKind, FaultCode
from virtagent_protocol.registry import Call
from virtagent_protocol.values import Struct

#: The commands of QEMU 10.2's schema, and those of them that QEMU's agent answers while frozen.
SCHEMA = """
    guest-exec guest-exec-status guest-file-close guest-file-flush guest-file-open guest-file-read
    guest-file-seek guest-file-write guest-fsfreeze-freeze guest-fsfreeze-freeze-list
    guest-fsfreeze-status guest-fsfreeze-thaw guest-fstrim guest-get-cpustats guest-get-devices
    guest-get-disks guest-get-diskstats guest-get-fsinfo guest-get-host-name guest-get-load
    guest-get-memory-block-info guest-get-memory-blocks guest-get-osinfo guest-get-time
    guest-get-timezone guest-get-users guest-get-vcpus guest-info guest-network-get-interfaces
    guest-network-get-route guest-ping guest-set-memory-blocks guest-set-time
    guest-set-user-password guest-set-vcpus guest-shutdown guest-ssh-add-authorized-keys
    guest-ssh-get-authorized-keys guest-ssh-remove-authorized-keys guest-suspend-disk
    guest-suspend-hybrid guest-suspend-ram guest-sync guest-sync-delimited
"""
SAFE = """
    guest-ping guest-info guest-sync guest-sync-delimited guest-fsfreeze-status guest-fsfreeze-thaw
"""
#: The signatures of the commands, as the schema has them: "*" for optional.
SIGNATURES = """
    guest-exec path:str *arg:[str] *env:[str] *input-data:str *capture-output:GuestExecCaptureOutput
    guest-exec-status pid:int
    guest-file-open path:str *mode:str
    guest-file-close handle:int
    guest-file-read handle:int *count:int
    guest-file-write handle:int buf-b64:str *count:int
    guest-file-seek handle:int offset:int whence:GuestFileWhence
    guest-file-flush handle:int
    guest-get-time
    guest-set-time *time:int
    guest-get-timezone
    guest-get-osinfo
    guest-get-host-name
    guest-get-users
    guest-set-user-password username:str password:str crypted:bool
    guest-ssh-get-authorized-keys username:str
    guest-ssh-add-authorized-keys username:str keys:[str] *reset:bool
    guest-ssh-remove-authorized-keys username:str keys:[str]
    guest-get-vcpus
    guest-set-vcpus vcpus:[GuestLogicalProcessor]
    guest-get-memory-blocks
    guest-set-memory-blocks mem-blks:[GuestMemoryBlock]
    guest-get-memory-block-info
    guest-shutdown *mode:str
    guest-suspend-disk
    guest-suspend-ram
    guest-suspend-hybrid
    guest-ping
    guest-info
    guest-sync id:int
    guest-sync-delimited id:int
    guest-get-devices
    guest-fsfreeze-status
    guest-fsfreeze-freeze
    guest-fsfreeze-freeze-list *mountpoints:[str]
    guest-fsfreeze-thaw
    guest-fstrim *minimum:int
    guest-get-disks
    guest-get-fsinfo
    guest-get-diskstats
    guest-get-cpustats
    guest-get-load
    guest-network-get-interfaces
    guest-network-get-route
"""

Mode = Annotated[bool | str, Alternate("Mode", BOOL, Enum("ModeWord", ("none", "all")))]


@pytest.fixture
def frozen() -> Iterator[None]:
    """A guest whose file systems are frozen, as far as the table knows."""
    FREEZE.frozen = True
    yield
    FREEZE.frozen = False


def one_command(registry: CommandRegistry) -> Command:
    (command,) = registry
    return command


async def failure(command: Command, arguments: Struct) -> QgaError:
    with pytest.raises(QgaError) as caught:
        await command.run(arguments)
    return caught.value


# --- the table ---------------------------------------------------------------------------------------


def test_the_commands_are_those_of_the_schema() -> None:
    assert sorted(COMMANDS) == sorted(SCHEMA.split())


@pytest.mark.parametrize("line", SIGNATURES.strip().splitlines())
def test_each_command_has_the_arguments_of_the_schema(line: str) -> None:
    name, *arguments = line.split()
    found = [f"{'*' * a.optional}{a.name}:{a.type.name}" for a in COMMANDS[name].arguments]
    assert found == arguments


def test_the_commands_that_work_while_frozen_are_those_of_qemu() -> None:
    assert sorted(command.name for command in COMMANDS.values() if command.safe) == sorted(SAFE.split())


def test_what_is_not_answered_when_it_succeeds_is_what_ends_the_guest() -> None:
    silent = {command.name for command in COMMANDS.values() if not command.success_response}
    assert silent == {"guest-shutdown", "guest-suspend-disk", "guest-suspend-hybrid", "guest-suspend-ram"}


async def test_guest_info_lists_every_command_and_what_is_enabled() -> None:
    info = await COMMANDS["guest-info"].run({})
    assert [entry["name"] for entry in info["supported_commands"]] == list(COMMANDS)
    enabled = {entry["name"]: entry["enabled"] for entry in info["supported_commands"]}
    assert enabled["guest-ping"]
    assert enabled["guest-file-open"]
    assert not enabled["guest-get-devices"]
    shutdown = {"name": "guest-shutdown", "enabled": True, "success-response": False}
    assert shutdown in info["supported_commands"]


async def test_guest_info_tells_what_is_left_while_frozen(frozen: None) -> None:
    info = await COMMANDS["guest-info"].run({})
    assert {e["name"] for e in info["supported_commands"] if e["enabled"]} == set(SAFE.split()) & set(
        COMMANDS
    )


async def test_sync_returns_its_id() -> None:
    assert await COMMANDS["guest-sync"].run({"id": 2**62}) == 2**62
    assert await COMMANDS["guest-sync-delimited"].run({"id": -1}) == -1
    assert await COMMANDS["guest-ping"].run({}) is None


# --- registration ------------------------------------------------------------------------------------


def test_annotations_are_the_schema() -> None:
    registry = CommandRegistry()

    @registry.command("guest-x")
    async def x(
        path: str,
        buf_b64: str | None = None,
        keys: list[str] | None = None,
        mode: Mode = False,
        *,
        caller: Caller,
    ) -> None:
        """Help."""

    command = one_command(registry)
    assert [(a.name, a.type.name, a.optional) for a in command.arguments] == [
        ("path", "str", False),
        ("buf-b64", "str", True),
        ("keys", "[str]", True),
        ("mode", "Mode", True),
    ]
    assert (command.method_name, command.help) == ("guest.x", "Help.")


def test_a_name_is_registered_once_and_a_type_that_the_schema_lacks_never() -> None:
    registry = CommandRegistry()

    @registry.command("guest-x")
    async def x() -> None: ...

    with pytest.raises(ValueError, match="registered twice"):
        registry.command("guest-x")(x)

    async def y(data: bytes) -> None: ...

    with pytest.raises(ValueError, match="no type"):
        registry.command("guest-y")(y)


# --- running a command -------------------------------------------------------------------------------


async def test_arguments_reach_the_handler_under_its_own_names() -> None:
    registry = CommandRegistry()
    got: list[Any] = []

    @registry.command("guest-x")
    async def x(buf_b64: str, count: int | None = None, *, caller: Caller) -> None:
        got.append((buf_b64, count, caller))

    command = one_command(registry)
    await command.run({"buf-b64": "eA=="})
    await command.run({"buf-b64": "eA==", "count": 0}, Caller(7))
    assert got == [("eA==", None, Caller(None)), ("eA==", 0, Caller(7))]
    # The caller is no argument that can be sent.
    assert (await failure(command, {"buf-b64": "", "caller": 1})).desc == "Parameter 'caller' is unexpected"
    assert (await failure(command, {"buf_b64": ""})).desc == "Parameter 'buf-b64' is missing"


async def test_a_wrong_argument_is_a_generic_error_and_the_handler_is_not_called() -> None:
    error = await failure(COMMANDS["guest-file-open"], {"path": 1})
    assert error.desc == "Invalid parameter type for 'path', expected: string"
    assert (error.error_class, error.code) == (GENERIC_ERROR, FaultCode.INVALID_PARAMS)


async def test_an_error_of_the_system_that_escapes_is_told_with_the_command() -> None:
    registry = CommandRegistry()

    @registry.command("guest-x")
    async def x() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/x")

    error = await failure(one_command(registry), {})
    assert (error.desc, error.error_class) == ("guest-x failed: Input/output error", GENERIC_ERROR)


async def test_a_disabled_command_says_why() -> None:
    error = await failure(COMMANDS["guest-get-devices"], {})
    assert (error.error_class, error.code) == (COMMAND_NOT_FOUND, FaultCode.METHOD_NOT_FOUND)
    assert error.desc == "Command guest-get-devices has been disabled: it exists on Windows only"


async def test_while_frozen_only_what_is_safe_runs(frozen: None) -> None:
    await COMMANDS["guest-ping"].run({})
    error = await failure(COMMANDS["guest-get-osinfo"], {})
    assert (error.error_class, error.kind) == (COMMAND_NOT_FOUND, FailureKind.NOT_READY)
    assert error.desc.endswith("has been disabled: the agent is in frozen state")


# --- as XML-RPC methods ------------------------------------------------------------------------------


async def test_a_command_is_a_method_with_one_struct() -> None:
    registry = CommandRegistry()

    @registry.command("guest-x-get")
    async def x(path: str, count: int = 1, *, caller: Caller) -> Struct:
        """Do it."""
        return {"path": path, "count": count, "reply_max": caller.reply_max}

    method = xmlrpc_methods(registry).get("guest.x_get")
    assert method.signatures() == [["struct", "struct"]]
    assert method.help == "Do it.\n\nAs guest-x-get of the QEMU guest agent: path: str, [count: int]."
    result = await method.handler(Call("guest.x_get", "1"), {"path": "/a"})
    assert result == {"path": "/a", "count": 1, "reply_max": REPLY_MAX}


async def test_the_struct_may_be_left_out_where_all_is_optional() -> None:
    method = xmlrpc_methods(basic.make_registry({})).get("guest.ping")
    assert method.signatures() == [["nil"], ["nil", "struct"]]
    assert await method.handler(Call("guest.ping", "1")) is None


def test_what_waits_for_nothing_is_answered_outside_the_slots() -> None:
    methods = xmlrpc_methods(COMMANDS.values())
    assert methods.get("guest.ping").inline
    assert not methods.get("guest.file_read").inline


def test_a_command_that_is_disabled_here_is_no_method() -> None:
    assert "guest.get_devices" not in xmlrpc_methods(COMMANDS.values())


async def test_text_that_xml_cannot_carry_is_made_so() -> None:
    registry = CommandRegistry()

    @registry.command("guest-x")
    async def x() -> Struct:
        return {"list": ["a\x1b[0m\ufffe\udcff\r\n\t\U0001f600"], "number": 1.5, "none": None}

    result = await xmlrpc_methods(registry).get("guest.x").handler(Call("guest.x", "1"))
    assert result == {"list": ["a\ufffd[0m\ufffd\ufffd\r\n\t\U0001f600"], "number": 1.5, "none": None}
    assert xmlrpc.decode_response(xmlrpc.encode_result(result))[0] == result
