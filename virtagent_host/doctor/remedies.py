"""The commands that `doctor` gives as remedies: as they would be typed for the VM that was looked at."""

from __future__ import annotations

import os
import shlex

from .symptoms import Facts, Port

_GUEST = "in the guest:"

GUEST_LOG = f"{_GUEST} dmesg"
LOAD_DRIVER = f"{_GUEST} modprobe virtio_console"
LOAD_ALL = f"{_GUEST} modprobe virtio_pci && modprobe virtio_console"
WHO_HAS_PORTS = f"{_GUEST} fuser -v /dev/virtio-ports/*"
RESTART_AGENT = (
    f"{_GUEST} systemctl restart va-guest.service",
    f"{_GUEST} journalctl -u va-guest.service",
)
POLICY = (
    f"{_GUEST} va-guest policy why va.getfile /etc/hostname",
    f"{_GUEST} systemctl reload va-guest.service  # when the policy was changed",
)
VERSIONS = ("va-host --version", f"{_GUEST} va-guest --version")


def start_agent(port: str) -> list[str]:
    """Return how to start the agent on the port of this name, and how to see what udev left undone."""
    return [
        f"{_GUEST} systemctl start va-guest.service || journalctl -u va-guest.service",
        f"{_GUEST} ls -l /dev/virtio-ports/{port} /etc/udev/rules.d/90-virtagent.rules",
    ]


def va_host(facts: Facts, command: str) -> str:
    """Return a command of va-host on this VM or monitor."""
    target = facts.name or f"--qmp {shlex.quote(os.fspath(facts.monitor))}"
    return f"{facts.va_host} {command} {target}"


def attach(facts: Facts) -> list[str]:
    """Return how to attach; where a va-host is attached already, how to do so anew."""
    if facts.name is None:
        return [va_host(facts, "attach")]
    monitor = shlex.quote((facts.status or {}).get("qmp", "SOCKET"))
    return [va_host(facts, "detach"), f"{facts.va_host} attach --qmp {monitor} --name {facts.name}"]


def serve(facts: Facts) -> list[str]:
    """Return how to start the service of a VM that has none, and how to look at the VM without one."""
    return [
        f"{facts.va_host} attach --qmp SOCKET --name {facts.name}",
        f"{facts.va_host} doctor --qmp SOCKET  # looks at QEMU itself",
    ]


def qmp(facts: Facts, command: str) -> str:
    """Return how to execute a command of QEMU, with its arguments as ``key=value``."""
    if facts.name:
        return f"{facts.va_host} qmp {facts.name} {command}"
    return f"echo {shlex.quote(command)} | qmp-shell {shlex.quote(os.fspath(facts.monitor))}"


def unplug(facts: Facts, port: Port) -> list[str]:
    """Return how to take a port away."""
    if port.id:
        return [qmp(facts, f"device_del id={port.id}")]
    return [f"start QEMU without its '-device virtserialport,…,name={port.name}', which has no id"]


def end_holder(facts: Facts) -> list[str]:
    """Return how to end the program that is connected to the channel, or how to find it."""
    if facts.holder_name:
        return [f"{facts.va_host} detach {facts.holder_name}"]
    if facts.holder:
        return [f"kill {facts.holder.pid}"]
    return [f"ss -xp | grep -F {shlex.quote(os.fspath(facts.channel or ''))}  # who it is; as root"]
