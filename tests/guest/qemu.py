"""The command line of a guest: `qemu_command`, and the choice between KVM and TCG behind it.

It is apart from vm.py so that a test can hand the same machine to ``va-host launch``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

IMAGE = Path(__file__).resolve().parents[2] / "build" / "guest"

#: Two are a third faster to boot than one, with or without KVM; more are not, on a host of two.
CPUS = 2
#: MiB. The guest uses 150 of them.
MEMORY = 512

#: Seconds. Where KVM works the kernel gets there in less than one; where it hangs it never does.
KVM_PROBE_TIMEOUT = 6

#: TCG executes the string instructions of a processor with ERMS byte by byte (docs/performance.md).
_ACCELERATION = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max,-erms"],
}


class VmError(Exception):
    """The VM cannot be used; the text says what to do, or what QEMU said."""


def qemu_command(
    directory: Path,
    *,
    machine: str = "pc",
    extra: Sequence[str] = (),
    memory: int = MEMORY,
    cpus: int = CPUS,
) -> list[str]:
    """Return the command line of a guest whose sockets and log are in *directory*.

    Args:
        directory: must exist; gets qmp.sock, qmp2.sock, shell.sock and console.log.
        machine: QEMU's machine type, ``pc`` or ``q35``.
        extra: more arguments, appended.
        memory: MiB.
        cpus: number of virtual CPUs.

    Raises:
        VmError: there is no guest image.
    """
    return [
        *_machine_without_disk(accelerator(), machine, memory, cpus),
        *("-append", "root=/dev/vda rw console=ttyS0 quiet"),
        *("-drive", f"file={IMAGE / 'disk.img'},format=raw,if=virtio,snapshot=on"),
        *("-chardev", f"file,id=log,path={directory / 'console.log'}", "-serial", "chardev:log"),
        *("-chardev", f"socket,id=shell,path={directory / 'shell.sock'},server=on,wait=off"),
        # The slot is how the guest knows that this port is the shell's.
        *("-device", "pci-serial,chardev=shell,addr=0x1e"),
        *("-qmp", f"unix:{directory / 'qmp.sock'},server=on,wait=off"),
        *("-qmp", f"unix:{directory / 'qmp2.sock'},server=on,wait=off"),
        *extra,
    ]


def accelerator() -> str:
    """Return ``kvm`` if KVM really runs our guest's kernel, else ``tcg``.

    That /dev/kvm is there says little: under some hypervisors the firmware starts, and the kernel hangs.
    The verdict is kept beside the image.

    Raises:
        VmError: there is no guest image.
    """
    missing = [name for name in ("vmlinuz", "initrd.img", "disk.img") if not (IMAGE / name).exists()]
    if missing:
        raise VmError(f"no guest image ({', '.join(missing)} not in {IMAGE}): run make guest-image")
    verdict = IMAGE / "accel"
    if not verdict.exists():
        verdict.write_text("kvm" if _kvm_works() else "tcg")
    return verdict.read_text()


def _machine_without_disk(accel: str, machine: str, memory: int, cpus: int) -> list[str]:
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", machine),
        *_ACCELERATION[accel],
        *("-smp", str(cpus), "-m", str(memory)),
        *("-kernel", str(IMAGE / "vmlinuz"), "-initrd", str(IMAGE / "initrd.img")),
    ]


def _kvm_works() -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    # Without a disk the kernel gets as far as its first process, which fails; the panic ends QEMU.
    command = [
        *("timeout", "--signal=KILL", str(KVM_PROBE_TIMEOUT)),
        *_machine_without_disk("kvm", "pc", MEMORY, CPUS),
        *("-append", "console=ttyS0 panic=-1", "-no-reboot", "-serial", "stdio"),
    ]
    probe = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return b"Run /init as init process" in probe.stdout
