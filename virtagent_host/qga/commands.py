"""``guest-*`` commands, as methods of the guest's agent: ``guest-file-open`` is ``guest.file_open``.

Errors of the agent keep qemu-ga's words and classes, since clients compare them; those of the link have
virtagent's, since qemu-ga has none: it just does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import trio

from virtagent_protocol.errors import FaultCode, RemoteFault, RemoteProtocolError, VirtagentError
from virtagent_protocol.qga.messages import COMMAND_NOT_FOUND, GENERIC_ERROR
from virtagent_protocol.values import Value, as_struct, member

from ..qemu.errors import QemuError

COMMAND_PREFIX = "guest-"
METHOD_PREFIX = "guest."
#: Seconds in which a guest that is there tells what it has, for query-commands.
LIST_TIMEOUT = 2.0

#: Fault → class, where qemu-ga answers with an error of its own.
_CLASSES = {
    FaultCode.METHOD_NOT_FOUND: COMMAND_NOT_FOUND,
    FaultCode.NOT_READY: COMMAND_NOT_FOUND,
    FaultCode.FAILED: GENERIC_ERROR,
    FaultCode.INVALID_PARAMS: GENERIC_ERROR,
}


class Guest(Protocol):
    """What the commands need of an attached VM."""

    async def call(self, method: str, *params: Value) -> Value:
        """Call a method of the guest and return its result. Raises `VirtagentError`."""

    async def renegotiate(self) -> Value:
        """Return the guest's `va.capabilities`."""


class GuestCommands:
    """The commands of one guest.

    Args:
        guest: the VM.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    async def execute(self, name: str, arguments: Mapping[str, Value]) -> object:
        """Run a command and return its result; None: the empty object.

        Raises:
            QemuError: the agent refused it, or has no such command.
            VirtagentError: the agent could not be asked, or did not answer properly.
        """
        try:
            result = await self._guest.call(method_of(name), dict(arguments))
        except RemoteFault as fault:
            raise _as_qga(name, fault) from fault
        check_json(result, name)
        return result

    async def names(self) -> list[str]:
        """Return the names of the guest's commands; none if it cannot be asked now."""
        try:
            with trio.fail_after(LIST_TIMEOUT):
                methods = member(
                    as_struct(await self._guest.renegotiate(), "va.capabilities"), "methods", list
                )
        except (VirtagentError, trio.TooSlowError):
            return []
        names = [method for method in methods if isinstance(method, str)]
        return [command_of(name) for name in names if name.startswith(METHOD_PREFIX)]


def method_of(command: str) -> str:
    """Return the method for a command: ``guest-file-open`` → ``guest.file_open``."""
    return METHOD_PREFIX + command.removeprefix(COMMAND_PREFIX).replace("-", "_")


def command_of(method: str) -> str:
    """Return the command for a method: ``guest.file_open`` → ``guest-file-open``."""
    return COMMAND_PREFIX + method.removeprefix(METHOD_PREFIX).replace("_", "-")


def _as_qga(name: str, fault: RemoteFault) -> VirtagentError:
    try:
        error_class = _CLASSES.get(FaultCode(fault.code))
    except ValueError:
        error_class = None
    if error_class is None:
        return fault
    if fault.code == FaultCode.METHOD_NOT_FOUND:
        return QemuError(error_class, f"The command {name} has not been found")
    return QemuError(error_class, fault.message)


def check_json(value: Value, name: str) -> None:
    """Raise RemoteProtocolError if a guest's answer holds what JSON does not carry."""
    if isinstance(value, bytes):
        raise RemoteProtocolError(f"the answer to {name} holds bytes, which JSON does not carry")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_json(inner, name)
