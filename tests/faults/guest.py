"""A stage with a real guest: its disk, the QEMUs that run it one after another, and the agent that calls."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.faults.callers import Known
from tests.faults.ledger import SEED, Ledger
from tests.faults.stage import AGENT, Stage, tallies
from tests.guest.lab import BridgeClient, Lab
from tests.guest.qemu import IMAGE
from tests.guest.vm import Vm
from virtagent_host.qemu.devices import ONE_PORT, cold_plug_arguments

KNOWN = "/var/known"

(_PORT,) = ONE_PORT

#: va-guest.service with the agent that calls in place of its own; both are made of the image's bundle.
_INSTALL = f"""
set -e
base64 -d >/usr/local/lib/fault_agent.py <<<{base64.b64encode(AGENT.read_bytes()).decode()}
mkdir -p /etc/systemd/system/va-guest.service.d
cat >/etc/systemd/system/va-guest.service.d/fault.conf <<END
[Service]
Environment=PYTHONPATH=/usr/local/bin/va-guest FAULT_SEED={SEED}
ExecStart=
ExecStart=/usr/bin/python3 /usr/local/lib/fault_agent.py
END
python3 -c 'import random; open("{KNOWN}", "wb").write(random.Random({SEED}).randbytes({Known.SIZE}))'
systemctl daemon-reload
systemctl restart va-guest
sync
"""


class Machine:
    """A guest: its disk, and the QEMU that runs it now.

    Args:
        directory: its own. Each QEMU has one in it.

    Attributes:
        vm: the QEMU.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._disk = directory / "disk.qcow2"
        self._made: list[Vm] = []
        # Not snapshot=on: a migration's two QEMUs have the same disk, and it outlives a QEMU that is killed.
        # The image must, too: `make guest-image` replaces it.
        base = directory / "base.img"
        try:
            base.hardlink_to(IMAGE / "disk.img")
        except OSError:  # another file system
            shutil.copy(IMAGE / "disk.img", base)
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base)]
        subprocess.run([*command, str(self._disk)], check=True)
        self.vm = self.another()

    def another(self, *extra: str) -> Vm:
        """Return another QEMU for the guest, not started; *extra* arguments are appended."""
        directory = self.directory / f"qemu{len(self._made)}"
        directory.mkdir()
        devices = [*cold_plug_arguments(ONE_PORT, directory / "virtagent.sock"), "-device", "pvpanic"]
        vm = Vm(directory, extra=[*devices, *extra])
        at = vm.command.index("-drive") + 1
        vm.command[at] = f"file={self._disk},format=qcow2,if=virtio"
        self._made.append(vm)
        return vm

    def stop(self) -> None:
        """End every QEMU that still runs."""
        for vm in self._made:
            vm.stop()

    async def boot(self) -> None:
        """Start the QEMU and wait for the guest."""
        await trio.to_thread.run_sync(self.vm.start)
        await self.vm.booted()

    async def install(self) -> None:
        """Have the guest's agent call, and give it the known file; it keeps both over a reboot."""
        result = await self.vm.console(_INSTALL)
        assert result.status == 0, result


class GuestStage(Stage):
    """A stage with a guest; see `on_guest`.

    Attributes:
        machine: the guest.
    """

    machine: Machine

    @property
    def vm(self) -> Vm:
        """The QEMU that runs the guest now."""
        return self.machine.vm

    async def in_guest(self, command: str) -> str:
        """Run a shell command in the guest that must succeed, and return its output."""
        result = await self.vm.console(command)
        assert result.status == 0, result
        return result.output

    async def unplug(self, client: BridgeClient) -> None:
        """Unplug the port, through the bridge, and return when that is done."""
        client.events.clear()
        await client.execute("device_del", id=_PORT.id)
        await client.event("VA_STATE_CHANGE", state="no-port")

    async def plug_in(self, client: BridgeClient, chardev: str) -> None:
        """Plug the port in again."""
        await client.execute(
            "device_add", driver="virtserialport", id=_PORT.id, chardev=chardev, name=_PORT.name
        )

    async def cut_off(self, command: str) -> None:
        """Have the guest run what ends it: nothing is awaited but that the shell has taken it."""
        await self.in_guest(f"(sleep 0.1; {command}) >/dev/null 2>&1 &")


@asynccontextmanager
async def on_guest(
    machine: Machine, ledger: Ledger, *options: str, lasts: bool = True
) -> AsyncIterator[GuestStage]:
    """Attach to a guest that runs, with calls under way; account for them, and judge them, at the end.

    Args:
        machine: the guest.
        ledger: the account.
        options: of `va-host attach`.
        lasts: whether va-host is there, and its guest ready, at the end.
    """
    print(f"seed {SEED}")
    directory = machine.directory / ledger.name
    directory.mkdir()
    lab = Lab(directory)
    first, mark = machine.vm, 0
    told: str | None = None
    service = lab.start("attach", "--qmp", str(machine.vm.qmp_path), *options)
    stage = GuestStage(lab, service, Known.make(KNOWN), ledger)
    stage.machine = machine
    try:
        await stage.ready_again()
        # What it tells until then is of before: of the end of the test before this one.
        mark = await _all_told(first)
        async with stage.calls():
            yield stage
        if lasts:
            await stage.close_account()
            await _all_told(machine.vm)
            # Before va-host is stopped, for what that does to calls under way is not this fault's doing.
            told = _log_of(first, machine.vm)
    except BaseException:
        print(f"{stage.service.log}:\n{stage.service.said[-3000:]}\n{machine.vm.log_tail()}")
        raise
    finally:
        stage.service.stop()
        ledger.add_agents(tallies(told or _log_of(first, machine.vm), mark))
        ledger.write()
    ledger.check()


def _log_of(first: Vm, last: Vm) -> str:
    """Return what a guest has logged; one that has migrated counts on in the other QEMU's log."""
    logs = dict.fromkeys([first, last])
    return "".join(vm.console_log.read_text(errors="replace") for vm in logs if vm.console_log.exists())


async def _all_told(vm: Vm) -> int:
    """Wait until the agent has told of all that happened before; return where the log goes on."""
    at = vm.log_size()
    for _ in range(2):
        at = await vm.wait_for_log("calls {", timeout=60, after=at)
    return await vm.wait_for_log("}", timeout=60, after=at)
