"""The monitor: lines of commands, typed at a prompt or read from a pipe.

The rules:

1. A line that begins with a `va_*` name, or the old `agent_*` one, is that command: values by position, or
   ``argument=value``. ``help`` and ``exit`` are the monitor's own. Any other line is QEMU's human monitor's.
2. Each command has its own connection. A prompt may lie idle for a day, nobody reads events meanwhile, and
   the bridge drops a client that does not read; besides, the monitor survives a restart of va-host.
3. A failed command prints its error and the next one is read. The exit status is that of the last failure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from virtagent_protocol.errors import EXIT_STATUS, VirtagentError

from ..commands import COMMANDS, Command
from ..extensions.described import COMMAND_PREFIX
from ..runtime import RuntimeDir
from .client import VmClient
from .extensions import call_extension, find_extension, list_extensions, put_result
from .fetch import call, dmesg, file_parts
from .output import EXIT_INTERRUPTED, put, put_bytes, put_error, put_fields
from .prompt import Completer, typed_lines
from .vocabulary import ALIASES, described, find_command, parse_line, usage

PROMPT = "(va-host) "


class Monitor:
    """The commands of one VM.

    Args:
        runtime: the runtime directory.
        name: the VM's name.
        timeout: seconds for commands of QEMU's.
    """

    def __init__(self, runtime: RuntimeDir, name: str, timeout: float) -> None:
        self._runtime = runtime
        self._name = name
        self._timeout = timeout

    def run(self) -> int:
        """Read lines until their end and return the exit status (rule 3)."""
        status = 0
        for line in self._typed() if sys.stdin.isatty() else sys.stdin:
            if line.strip() == "exit":
                break
            try:
                self.execute(line)
            except VirtagentError as error:
                status = EXIT_STATUS[error.kind]
                sys.stdout.flush()
                put_error(error)
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                status = EXIT_INTERRUPTED
                put("")
            sys.stdout.flush()
        return status

    def execute(self, line: str) -> None:
        """Run one line and print what it answers.

        Raises:
            VirtagentError: it failed.
        """
        word, _, rest = line.strip().partition(" ")
        if not word:
            return
        if word in ("help", "?") and not rest:
            self._help()
        elif word in ("help", "?") and rest.strip().startswith(("va_", "agent_")):
            put(described(self._find(rest.strip())))
        elif word.startswith(("va_", "agent_")):
            self._run(self._find(word), rest)
        else:
            put(self.hmp(line.strip()))

    def hmp(self, line: str) -> str:
        """Have QEMU's human monitor run a line and return its answer, without the last line's end.

        Raises:
            VirtagentError: as `VmClient.execute`.
        """
        arguments = {"command-line": line}
        with self._connect() as client:
            answer = client.execute("human-monitor-command", arguments, timeout=self._timeout)
        return str(answer).replace("\r\n", "\n").rstrip("\n")

    def extensions(self) -> list[Command]:
        """Return the extensions of the guest, as far as it can be asked now."""
        try:
            with self._connect() as client:
                return list_extensions(client)
        except VirtagentError:
            return []

    def _find(self, word: str) -> Command:
        if not word.startswith(COMMAND_PREFIX):
            return find_command(word)
        with self._connect() as client:
            return find_extension(client, word)

    def _run(self, command: Command, rest: str) -> None:
        arguments = parse_line(command, rest)
        with self._connect() as client:
            if command.name == "va_viewfile":
                self._put_file(file_parts(client, **arguments))
            elif command.name == "va_viewdmesg":
                self._put_file(iter([dmesg(client, **arguments)]))
            elif command.name.startswith(COMMAND_PREFIX):
                put_result(call_extension(client, command, arguments))
            elif "timeout" in arguments:
                put_fields(call(client, command.name, arguments, arguments["timeout"]))
            else:
                put_fields(client.execute(command.name, arguments, timeout=self._timeout))

    def _put_file(self, parts: Iterator[bytes]) -> None:
        last = b"\n"

        def watched() -> Iterator[bytes]:
            nonlocal last
            for part in parts:
                last = part[-1:] or last
                yield part

        put_bytes(watched())
        if last != b"\n" and sys.stdin.isatty():
            put("")  # The prompt starts on a line of its own.

    def _help(self) -> None:
        commands = [*COMMANDS.values(), *self.extensions()]
        width = max(len(usage(command)) for command in commands)
        for command in commands:
            put(f"{usage(command):{width}} -- {command.help.partition(chr(10))[0]}")
        old = ", ".join(ALIASES)
        put(f"\nOld names: {old}.\nCtrl-D or 'exit' leaves this prompt. All else is QEMU's, 'quit' too:\n")
        put(self.hmp("help"))

    def _connect(self) -> VmClient:
        return VmClient.connect(self._runtime, self._name)

    def _typed(self) -> Iterator[str]:
        return typed_lines(PROMPT, Completer(self.hmp, self.extensions))
