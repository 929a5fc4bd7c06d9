"""One command of the QGA wire and its answer, by qemu-ga's rules.

The rules:

1. First whether there is such a command, then whether it is to be had now, then the policy, then its
   arguments. The words and classes of refusals are qemu-ga's: clients compare them. (libvirt takes the
   class CommandNotFound for "the agent cannot do it", and all else for a failure.)
2. While the guest's file systems are frozen, only what is safe then is answered.
3. Some commands have no answer if they succeed (shutdown, suspend): nobody may be left to read it.
4. A handler that raises what it should not is answered, too, and logged. It never ends the agent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from virtagent_protocol.errors import FailureKind, Fault
from virtagent_protocol.qga.messages import COMMAND_NOT_FOUND, Command, QgaError, Refusal, failure, success
from virtagent_protocol.registry import Gate
from virtagent_protocol.values import Struct

from ..methods import qga

#: As for calls over the link: name, outcome, time; never contents.
rpc_log = logging.getLogger("virtagent.rpc")
_log = logging.getLogger("virtagent.qga")

#: The command whose answer is preceded by 0xFF.
_DELIMITED = "guest-sync-delimited"


class Dispatcher:
    """Executes commands.

    Args:
        gate: what each has to pass.
        commands: the table.
    """

    def __init__(self, gate: Gate, commands: Mapping[str, qga.Command] = qga.COMMANDS) -> None:
        self._gate = gate
        self._commands = commands

    async def answer(self, item: Command | Refusal) -> bytes | None:
        """Execute a command; return what to send, or None where nothing is to be sent."""
        if isinstance(item, Refusal):
            return failure(item.error, item.id)
        start = time.perf_counter()
        outcome = "ok"
        try:
            command = self._find(item.name)
            result = await self._run(command, item.arguments)
            if not command.success_response:
                return None
            return success(result, item.id, delimited=item.name == _DELIMITED)
        except QgaError as error:
            outcome = f"error {error.error_class}"
            return failure(error, item.id)
        except Exception as error:  # noqa: BLE001 - a bug in a handler must not end the agent
            outcome = "internal error"
            _log.exception("%s: internal error", ascii(item.name[:80]))
            return failure(QgaError(f"internal error in {item.name}: {type(error).__name__}"), item.id)
        finally:
            elapsed = 1000 * (time.perf_counter() - start)
            rpc_log.info("%s by qga: %s, %.1f ms", ascii(item.name[:80]), outcome, elapsed)

    def _find(self, name: str) -> qga.Command:
        command = self._commands.get(name)
        if command is None:
            raise QgaError(f"The command {name} has not been found", COMMAND_NOT_FOUND)
        if not command.disabled and not command.enabled:
            raise _disabled(name, "the agent is in frozen state")
        if self._gate.forbidden([command.method_name]):
            raise _disabled(name, "the command is not allowed")
        return command

    async def _run(self, command: qga.Command, arguments: dict[str, Any]) -> object:
        try:
            await self._gate.admit(command.method_name, [arguments])
            result = await command.run(arguments)
        except qga.QgaError as error:
            raise QgaError(error.desc, error.error_class) from error
        except Fault as fault:
            if fault.kind is FailureKind.FORBIDDEN:
                _log.warning("%s by qga: forbidden: %s", command.name, fault)
            raise QgaError(f"{fault.kind.value}: {fault.message}") from fault
        return self._less_what_is_forbidden(result) if command.name == "guest-info" else result

    def _less_what_is_forbidden(self, info: Struct) -> Struct:
        """Return what guest-info answers, with what no call passes told as disabled."""
        listed = info["supported_commands"]
        assert isinstance(listed, list)
        for entry in listed:
            assert isinstance(entry, dict)
            command = self._commands[str(entry["name"])]
            if self._gate.forbidden([command.method_name]):
                entry["enabled"] = False
        return info


def _disabled(name: str, why: str) -> QgaError:
    return QgaError(f"Command {name} has been disabled: {why}", COMMAND_NOT_FOUND)
