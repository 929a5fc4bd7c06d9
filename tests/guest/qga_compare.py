"""QEMU's guest agent and ours, side by side in one guest, asked the same; and the table of what differs.

The rules:

1. Each agent has a virtserialport of its own, and runs as a unit that `systemd-run` makes, as root.
2. Behind each step a guest-sync is sent: what comes before its answer is the step's, be it nothing.
3. Answers are compared member by member: whether there is one, its type, its value. A value that changes by
   itself is compared as `qga_differences.CHANGING` says.
4. A difference that `qga_differences.EXPLAINED` does not explain fails the comparison; so does an explanation
   that explains nothing any more.
5. Commands that this qemu-ga does not have yet are checked against the schema alone.

``python -m tests.guest.qga_compare FILE`` (`make qga-table`) writes docs/qga.md.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.guest.qemu import VmError
from tests.guest.qga_cases import cases
from tests.guest.qga_differences import ABSENT, CHANGING, EXPLAINED, Explanation, against_schema
from tests.guest.qga_page import page
from tests.guest.qga_steps import PREPARE, Ask, Case, Raw, Saved, Shell, Step
from tests.guest.vm import running_vm

#: Seconds for one step; a file of 17 MB is captured in 5 with TCG.
STEP_TIMEOUT = 60.0
#: Seconds until an agent that is just being started answers.
START_TIMEOUT = 60.0
#: Seconds between two questions whether something is done.
ASK_EVERY = 0.02

#: MiB; nothing is written to it but a file system.
_DISK_SIZE = 32
_SECTOR = 512


@dataclass(frozen=True)
class Difference:
    """What the two agents did not say alike.

    Attributes:
        case: in which.
        path: where in the answers: ``2.return.0.name`` is of the step with index 2.
        theirs, ours: what stands there; `ABSENT`: nothing.
    """

    case: Case
    path: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        said = f"qemu-ga {_short(self.theirs)}, va-guest {_short(self.ours)}"
        return f"{self.case.command}, {self.case.name}: {self.path}: {said}"


class GuestShell:
    """The guest's shell, kept: hundreds of commands, and each costs no process that it does not name."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def run(self, command: str) -> str:
        """Run a command in the shell itself, and return what it printed, and its status at the end."""
        token = secrets.token_hex(8)
        # In two parts, in case that something still echoes.
        await self._stream.send_all(
            f"{{ {command}\n}} </dev/null 2>&1; printf '<%s %d>' {token} $?\n".encode()
        )
        received = b""
        while not (match := re.search(rf"<{token} (\d+)>$".encode(), received)):
            part = await self._stream.receive_some(1 << 16)
            assert part, "QEMU has closed the shell's port"
            received += part
        return received[: match.start()].decode(errors="replace") + f"<status {int(match[1])}>"


class Agent:
    """One of the agents, at the other end of its port."""

    def __init__(self, stream: trio.SocketStream, shell: GuestShell) -> None:
        self._stream = stream
        self._shell = shell
        self._received = b""
        self._number = 10**6

    async def go_through(self, case: Case) -> list[Any]:
        """Go through the steps of a case; return what each brought: answers, or what was printed."""
        brought: list[Any] = []
        for step in case.steps:
            try:
                with trio.fail_after(STEP_TIMEOUT):
                    brought.append(await self._go(step, brought))
            except trio.TooSlowError:
                raise VmError(f"{case.command}, {case.name}: no end of {step} in {STEP_TIMEOUT} s") from None
        return brought

    async def in_step(self) -> None:
        """Wait until the agent answers."""
        with trio.fail_after(START_TIMEOUT):
            while True:
                with trio.move_on_after(1):
                    await self._exchange(b"\n\xff\n")
                    return

    async def _go(self, step: Step, brought: list[Any]) -> Any:
        if isinstance(step, Shell):
            return await self._shell.run(step.command)
        if isinstance(step, Raw):
            return await self._exchange(step.data + b"\n\xff\n")
        arguments = {name: _filled(value, brought) for name, value in step.arguments.items()}
        command = json.dumps({"execute": step.command, "arguments": arguments}).encode()
        while True:
            answers = await self._exchange(command)
            if not step.until or not _pending(answers, step.until):
                return answers
            await trio.sleep(ASK_EVERY)

    async def _exchange(self, data: bytes) -> list[Any]:
        self._number += 1
        sync = b'{"execute":"guest-sync","arguments":{"id":%d}}\n' % self._number
        last = b'{"return": %d}' % self._number
        await self._stream.send_all(data + sync)
        answers = []
        while (line := await self._line()) != last:
            answers.append(_parsed(line))
        return answers

    async def _line(self) -> bytes:
        parts = [self._received]
        while b"\n" not in parts[-1]:
            part = bytes(await self._stream.receive_some(1 << 16))
            assert part, "QEMU has closed the port"
            parts.append(part)
        line, _, self._received = b"".join(parts).partition(b"\n")
        return line


def _parsed(line: bytes) -> Any:
    mark, _, rest = line.partition(b"\xff")
    try:
        return {"0xFF": json.loads(rest)} if rest and not mark else json.loads(line)
    except ValueError:
        return repr(line)


def _filled(value: Any, brought: list[Any]) -> Any:
    if not isinstance(value, Saved):
        return value
    answer = brought[value.step][0].get("return", -1)
    return answer[value.member] if value.member and answer != -1 else answer


def _pending(answers: list[Any], member: str) -> bool:
    return len(answers) == 1 and answers[0].get("return", {}).get(member) is False


@asynccontextmanager
async def both_agents(directory: Path) -> AsyncIterator[tuple[Agent, Agent]]:
    """Boot a guest with things to tell of; yield its qemu-ga and its va-guest."""
    disk = directory / "disk.img"
    _make_disk(disk)
    extra = [
        "-device",
        "virtio-serial",
        "-netdev",
        "user,id=net,restrict=on",
        "-device",
        "virtio-net,netdev=net",
    ]
    extra += ["-drive", f"file={disk},format=raw,if=none,id=nvme", "-device", "nvme,drive=nvme,serial=room"]
    for name in ("theirs", "ours"):
        extra += ["-chardev", f"socket,id={name},path={directory / name}.sock,server=on,wait=off"]
        extra += ["-device", f"virtserialport,chardev={name},name=test.{name}"]
    async with running_vm(directory, extra=extra) as vm:
        await vm.booted()
        prepared = await vm.console(_PREPARE)
        assert prepared.status == 0, prepared
        async with (
            await _connect(directory / "shell.sock") as shell,
            await _connect(directory / "theirs.sock") as theirs,
            await _connect(directory / "ours.sock") as ours,
        ):
            agents = [Agent(stream, GuestShell(shell)) for stream in (theirs, ours)]
            for agent in agents:
                await agent.in_step()
            yield agents[0], agents[1]


#: A network, a mount on a partition of another disk, and the agents. Both log every command, and a letter on
#: the console costs an exit from the guest: so the log stays in the guest.
_PREPARE = f"""set -e
{PREPARE}
modprobe virtio_net
udevadm settle
for device in /sys/class/net/e*; do
    busybox ip addr add 10.0.2.15/24 dev ${{device##*/}}
    busybox ip link set ${{device##*/}} up
done
busybox ip link set lo up
mke2fs -q -t ext4 /dev/nvme0n1p1 && mount /dev/nvme0n1p1 /mnt
systemctl start va-guest-freezer.socket
mkdir -p /run/systemd/journald.conf.d
printf '[Journal]\\nForwardToConsole=no\\n' >/run/systemd/journald.conf.d/zz-quiet.conf
systemctl restart systemd-journald
mkdir -p /run/theirs
run="systemd-run --quiet --collect --unit"
$run theirs qemu-ga -m virtio-serial -p /dev/virtio-ports/test.theirs -t /run/theirs
$run ours va-guest -c none --qga virtio-serial:/dev/virtio-ports/test.ours
"""


async def _connect(path: Path) -> trio.SocketStream:
    return await trio.open_unix_socket(str(path))


def _make_disk(path: Path) -> None:
    """Make a disk with one partition, from 1 MiB to its end."""
    start = 2048
    entry = b"\0" * 4 + b"\x83" + b"\0" * 3
    entry += start.to_bytes(4, "little") + (_DISK_SIZE * 2**20 // _SECTOR - start).to_bytes(4, "little")
    path.write_bytes(bytes(446) + entry + bytes(48) + b"\x55\xaa")
    with path.open("r+b") as file:
        file.truncate(_DISK_SIZE * 2**20)


def compared(case: Case, theirs: list[Any], ours: list[Any]) -> list[Difference]:
    """Compare what two agents brought."""
    found = []
    for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        # Nearly always a step has one answer.
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other) == 1:
            one, other = one[0], other[0]
        for path, their, our in _differences(one, other, f"{number}."):
            if not any(rule.fits(case.command, path, their, our) for rule in CHANGING):
                found.append(Difference(case, path, their, our))
    return found


def _differences(theirs: Any, ours: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):
            below = f"{path}{'' if path.endswith('.') else '.'}{name}"
            yield from _differences(theirs.get(name, ABSENT), ours.get(name, ABSENT), below)
    elif isinstance(theirs, list) and isinstance(ours, list):
        if (key := _key(theirs)) is not None and _key(ours) == key:
            yield from _differences(_by(key, theirs), _by(key, ours), path)
            return
        for i in range(max(len(theirs), len(ours))):
            one, other = (some[i] if i < len(some) else ABSENT for some in (theirs, ours))
            yield from _differences(one, other, f"{path}{'' if path.endswith('.') else '.'}{i}")
    elif type(theirs) is not type(ours) or theirs != ours:
        yield path, theirs, ours


def _by(key: str, listed: list[Any]) -> dict[str, Any]:
    return {str(some[key]): some for some in listed}


def _key(listed: list[Any]) -> str | None:
    """Return by what objects in a list are told apart, where their order means nothing."""
    for key in ("success-response", "logical-id", "phys-index"):
        if listed and all(isinstance(some, dict) and key in some for some in listed):
            return "name" if key == "success-response" else key
    return None


@dataclass
class Outcome:
    """What a comparison has found.

    Attributes:
        version: of qemu-ga: 7.2.
        asked: command → how often it was given to both; 0: to ours alone, since qemu-ga does not have it.
        explained: explanation → commands that it is needed for.
        problems: what is neither the same nor explained, in words.
    """

    version: str
    asked: dict[str, int]
    explained: dict[Explanation, set[str]]
    problems: list[str]


async def compare(theirs: Agent, ours: Agent) -> Outcome:
    """Take both agents through the cases and compare."""
    info = (await theirs.go_through(Case("guest-info", "", (Ask("guest-info"),))))[0][0]["return"]
    known = {command["name"] for command in info["supported_commands"]}
    outcome = Outcome(".".join(info["version"].split(".")[:2]), {}, {}, [])
    for case in cases():
        if case.command not in known:
            outcome.asked[case.command] = 0
            if case.name == "plain":
                ((answer,),) = await ours.go_through(case)
                problems = against_schema(case.command, answer)
                outcome.problems += [f"{case.command}: {problem}" for problem in problems]
            continue
        brought = await theirs.go_through(case)
        for difference in compared(case, brought, await ours.go_through(case)):
            _explain(difference, outcome)
        asked = sum(not isinstance(step, Shell) for step in case.steps)
        outcome.asked[case.command] = outcome.asked.get(case.command, 0) + asked
    outcome.problems += [
        f"explains nothing any more: {explanation}"
        for explanation in EXPLAINED
        if explanation not in outcome.explained
    ]
    return outcome


def _explain(difference: Difference, outcome: Outcome) -> None:
    for explanation in EXPLAINED:
        if explanation.fits(difference.case, difference.path, difference.theirs, difference.ours):
            outcome.explained.setdefault(explanation, set()).add(difference.case.command)
            return
    outcome.problems.append(str(difference))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}… ({len(text)} characters)"


async def compare_in(directory: Path) -> Outcome:
    """Compare in a guest of its own."""
    async with both_agents(directory) as agents:
        return await compare(*agents)


def main(target: Path) -> None:
    """Write docs/qga.md, or say what is wrong."""
    with tempfile.TemporaryDirectory() as directory:
        outcome = trio.run(compare_in, Path(directory))
    if outcome.problems:
        sys.exit("\n".join(outcome.problems))
    target.write_text(page(outcome.version, outcome.asked, outcome.explained))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
