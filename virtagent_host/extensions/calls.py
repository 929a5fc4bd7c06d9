"""`va_x_NAME` on the bridge.

The rules:

1. A guest is asked for the description of an extension at each call, which takes one more round trip and is
   right even if its file was changed the moment before. Arguments are checked here, in QEMU's words.
2. A call has a deadline and is cancelled like that of any other command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from virtagent_protocol.errors import FaultCode, RemoteFault

from ..command import Argument, Arguments, Client, Command, VirtualMachine
from ..commands import CALL_TIMEOUT, run
from ..qemu.errors import ErrorClass, QemuError
from ..qga.commands import check_json
from .described import command_names, describe, method_name, params


class Vm(VirtualMachine, Protocol):
    """What the bridge needs besides."""

    @property
    def methods(self) -> frozenset[str]:
        """What the guest offers, as far as it was asked in this session."""


class ExtensionCommands:
    """The commands that a guest's extensions are.

    Args:
        vm: the VM.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def names(self) -> list[str]:
        """Return the names of those that the guest had when it was last asked."""
        return command_names(self._vm.methods)

    async def execute(self, name: str, arguments: Mapping[str, Any], client: Client) -> object:
        """Run one and return its result.

        Raises:
            InvalidArguments: the arguments are not those of the guest's description.
            VirtagentError: there is none of that name, it failed, or the guest cannot be asked.
        """
        command = await self._described(name, arguments.get("timeout"), client)
        return await run(command, self._vm, arguments, client)

    async def _described(self, name: str, timeout: object, client: Client) -> Command:
        method = method_name(name)
        if method is None:
            raise _not_found(name)
        # A short deadline is one for the whole; whether it is a good one is not known before.
        short = isinstance(timeout, (int, float)) and 0 <= timeout < CALL_TIMEOUT
        limit = Argument("timeout", "number", "", optional=True, default=timeout if short else CALL_TIMEOUT)

        async def ask(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
            try:
                text = await vm.call("system.methodHelp", method)
            except RemoteFault as fault:
                if fault.code == FaultCode.METHOD_NOT_FOUND:
                    raise _not_found(name) from fault
                raise
            command = describe(method, text)
            return replace(command, handler=partial(_call, command))

        command = await run(Command(name, "", "", "", ask, (limit,)), self._vm, {}, client)
        assert isinstance(command, Command)
        return command


async def _call(command: Command, vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    method = method_name(command.name)
    assert method is not None
    given = params(command, arguments)
    try:
        result = await vm.call(method, *given)
    except RemoteFault as fault:
        if fault.code != FaultCode.METHOD_NOT_FOUND:
            raise
        # It came after the guest's methods were listed; its description was there just now.
        await vm.renegotiate()
        result = await vm.call(method, *given)
    check_json(result, method)
    return {} if result is None else result


def _not_found(name: str) -> QemuError:
    return QemuError(
        ErrorClass.COMMAND_NOT_FOUND.value,
        f"The command {name} has not been found: the guest has no such extension; there, "
        "'va-guest extensions' says whether something is wrong with its file",
    )
