"""What can be seen of a virtagent channel from the host: the facts that `doctor` judges.

The rules:

1. Looking changes nothing: QMP commands that only ask, files that are only stat'ed, and no connection to a
   chardev, which the guest would notice.
2. Facts are what was seen, without an opinion. What cannot be seen is None, and is not guessed at.
3. A VM that is served is seen through its bridge, by its service's own status and QEMU's monitor behind it;
   any other through a monitor of QEMU.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from virtagent_protocol.errors import CallTimeout, NotReady, VirtagentError

from ..commands import CALL_TIMEOUT
from ..frontend.client import CONNECT_TIMEOUT, GRACE, VmClient
from ..frontend.output import PROGRAM
from ..qemu.devices import CHARDEV_ID, CONTROLLER, PORT_NAME, device_property, devices, socket_path
from ..qemu.errors import QemuError
from ..qemu.qmp import QmpConnection, open_qmp
from ..runtime import RuntimeDir
from .socket_owner import Program, connected_program

#: Seconds for all questions to QEMU; it answers each in a millisecond.
LOOK_TIMEOUT = 10.0

#: One port for both directions, or one for each (`attach --ports two`).
PORT_NAMES = (PORT_NAME, f"{PORT_NAME}-client", f"{PORT_NAME}-server")

#: ``VIRTIO_CONFIG_S_DRIVER_OK: Driver setup and ready`` in x-query-virtio-status.
_STATUS_BIT = re.compile(r"VIRTIO_CONFIG_S_(\w+)")


@dataclass(frozen=True)
class Chardev:
    """A chardev, by `query-chardev`: its label, its description, and whether its frontend is open."""

    label: str
    filename: str
    open: bool

    @property
    def path(self) -> Path | None:
        """The socket, if it is one."""
        return socket_path(self.filename)

    @property
    def connected(self) -> bool:
        """Whether a program is connected to it."""
        return not self.filename.startswith("disconnected:")


@dataclass(frozen=True)
class Port:
    """A virtserialport: its id or "", its name in the guest, its chardev, the path of its virtio device."""

    id: str
    name: str
    chardev: str
    device: str


@dataclass(frozen=True)
class Qemu:
    """What QEMU says of itself.

    Attributes:
        version: ``7.2.22``.
        run_state: RunState of qapi/run-state.json.
        has_controller: whether there is a virtio-serial controller.
        takes_controller: whether one can be plugged in; None: of this machine it is not known.
        chardevs: by label.
        ports: all virtserialports.
        driver: status bits that the guest has set in our port's virtio device (VIRTIO 1.2, section 2.1), such
            as ``DRIVER_OK``; None: there is no port, or QEMU is older than 7.2.
    """

    version: str = ""
    run_state: str = "running"
    has_controller: bool = True
    takes_controller: bool | None = None
    chardevs: dict[str, Chardev] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    driver: frozenset[str] | None = None

    @property
    def port(self) -> Port | None:
        """Our port; of two, one that the guest has not opened, if there is one."""
        ours = [port for port in self.ports if port.name in PORT_NAMES]
        return min(ours, key=self.is_open, default=None)

    @property
    def chardev(self) -> Chardev | None:
        """The chardev of our port; without a port, the one that is named like ours."""
        return self.chardevs.get(self.port.chardev if self.port else CHARDEV_ID)

    def is_open(self, port: Port) -> bool:
        """Whether a program in the guest has opened the port."""
        chardev = self.chardevs.get(port.chardev)
        return chardev is not None and chardev.open


@dataclass(frozen=True)
class Facts:
    """All that was seen of one VM.

    Attributes:
        monitor: the socket that was asked: the bridge of a VM, or QEMU's monitor.
        name: the VM's name, if it is its service that was asked.
        va_host: how the user calls va-host, for commands to be copied.
        unreachable: why there was no answer, of the service or of QEMU. Little is known then: the status of a
            service without QEMU, and who has a monitor.
        status: what `va_status` says; None: no service was asked.
        capabilities: what `va_capabilities` says; None: nobody was asked, or did not answer.
        service_pid: of the va-host that was asked.
        qemu: None where the service is attached without QMP.
        channel: the socket to which va-host connects.
        obstacle: why this user cannot connect to it.
        holder: who is connected to it; None: nobody, or it cannot be seen.
        holder_name: the holder is the va-host of this VM.
    """

    monitor: Path
    name: str | None = None
    va_host: str = PROGRAM
    unreachable: VirtagentError | None = None
    status: dict[str, Any] | None = None
    capabilities: dict[str, Any] | None = None
    service_pid: int | None = None
    qemu: Qemu | None = None
    channel: Path | None = None
    obstacle: OSError | None = None
    holder: Program | None = None
    holder_name: str | None = None


def look_at_vm(runtime: RuntimeDir, name: str, va_host: str = PROGRAM) -> Facts:
    """Look at a VM through its service.

    Raises:
        BadName: see `RuntimeDir.vm`.
    """
    paths = runtime.vm(name)
    facts = Facts(paths.bridge, name, va_host)
    try:
        with VmClient.connect(runtime, name) as client:
            status = client.execute("va_status", timeout=CONNECT_TIMEOUT)
            capabilities = _capabilities(client) if status["state"] == "ready" else None
    except VirtagentError as error:
        return replace(facts, unreachable=error)
    facts = replace(facts, status=status, capabilities=capabilities, service_pid=_pid_in(paths.lock))
    waits = NotReady(f"va-host '{name}' has no QEMU: {status['reason']}")
    if "channel" not in status:
        return replace(facts, unreachable=waits)
    try:
        # A service that was told of no QEMU knows no chardev's name.
        qemu = trio.run(_look_at_qemu, paths.bridge) if "chardev" in status else None
    except QemuError:  # it had one once (`attach --retry`)
        return replace(facts, unreachable=waits)
    except VirtagentError as error:
        return replace(facts, unreachable=error)
    return _with_channel(replace(facts, qemu=qemu), runtime, Path(status["channel"]))


def _capabilities(client: VmClient) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = client.execute("va_capabilities", timeout=CALL_TIMEOUT + GRACE)
    except VirtagentError:
        return None
    return answer


def look_at_qemu(runtime: RuntimeDir, monitor: Path, va_host: str = PROGRAM) -> Facts:
    """Look at a QEMU through a monitor of its own, be there a service or not."""
    facts = Facts(monitor, va_host=va_host)
    try:
        qemu = trio.run(_look_at_qemu, monitor)
    except VirtagentError as error:
        holder = connected_program(os.fspath(monitor))
        return replace(facts, unreachable=error, holder=holder, holder_name=_name_of(holder, runtime))
    return _with_channel(replace(facts, qemu=qemu), runtime, qemu.chardev.path if qemu.chardev else None)


def _with_channel(facts: Facts, runtime: RuntimeDir, channel: Path | None) -> Facts:
    if channel is None:
        return facts
    holder = connected_program(os.fspath(channel))
    return replace(
        facts,
        channel=channel,
        obstacle=_obstacle(channel),
        holder=holder,
        holder_name=_name_of(holder, runtime),
    )


async def _look_at_qemu(monitor: Path) -> Qemu:
    with trio.move_on_after(LOOK_TIMEOUT):
        async with open_qmp(monitor) as qmp:
            found = [(path, kind) async for path, kind in devices(qmp)]
            ports = [await _port(qmp, path) for path, kind in found if kind == "virtserialport"]
            chardevs = [
                Chardev(info["label"], info["filename"], info["frontend-open"])
                for info in await qmp.execute("query-chardev")
            ]
            seen = Qemu(
                version=_version(qmp),
                run_state=(await qmp.execute("query-status"))["status"],
                has_controller=any(CONTROLLER.match(kind) for _, kind in found),
                takes_controller=await _takes_controller(qmp, found),
                chardevs={chardev.label: chardev for chardev in chardevs},
                ports=tuple(ports),
            )
            return replace(seen, driver=await _driver(qmp, seen.port.device)) if seen.port else seen
    raise CallTimeout(f"{monitor}: QEMU does not answer within {LOOK_TIMEOUT:g} s; is it stopped (SIGSTOP)?")


def _version(qmp: QmpConnection) -> str:
    numbers = qmp.greeting["QMP"]["version"]["qemu"]
    return ".".join(str(numbers[part]) for part in ("major", "minor", "micro"))


async def _port(qmp: QmpConnection, path: str) -> Port:
    bus = await device_property(qmp, path, "parent_bus")
    return Port(
        id="" if "anon/" in path else path.rpartition("/")[2],
        name=await device_property(qmp, path, "name"),
        chardev=await device_property(qmp, path, "chardev"),
        device=bus.rpartition("/")[0],
    )


async def _takes_controller(qmp: QmpConnection, found: list[tuple[str, str]]) -> bool | None:
    machine = await device_property(qmp, "/machine", "type")
    if machine.startswith("pc-i440fx"):
        return True
    for path, kind in found:
        # The bus behind a port is its child of the same name. What sits there is a link child[N] of the bus.
        if kind == "pcie-root-port" and "anon/" not in path:
            bus = await qmp.execute("qom-list", {"path": f"{path}/{path.rpartition('/')[2]}"})
            if not any(item["name"].startswith("child[") for item in bus):
                return True
    return False if machine.startswith("pc-q35") else None


async def _driver(qmp: QmpConnection, device: str) -> frozenset[str] | None:
    try:
        answer = await qmp.execute("x-query-virtio-status", {"path": device})
    except QemuError:  # since QEMU 7.2, and experimental
        return None
    bits = (_STATUS_BIT.match(status) for status in answer["status"]["statuses"])
    return frozenset(bit[1] for bit in bits if bit)


def _obstacle(path: Path) -> OSError | None:
    """Return what would keep this user from connecting to a socket, without doing it."""
    try:
        path.stat()
    except OSError as error:
        return error
    if os.access(path, os.W_OK, effective_ids=True):  # all that connect() needs (unix(7))
        return None
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))


def _name_of(holder: Program | None, runtime: RuntimeDir) -> str | None:
    """Return the name of the attached VM whose va-host this is."""
    if holder is None:
        return None
    try:
        names = runtime.attached()
    except VirtagentError:
        return None
    return next((name for name in names if _pid_in(runtime.vm(name).lock) == holder.pid), None)


def _pid_in(lock: Path) -> int | None:
    try:
        return int(lock.read_text())
    except (OSError, ValueError):
        return None
