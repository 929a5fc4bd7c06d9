"""The virtagent devices of a QEMU: found where they exist, plugged in where they do not.

The rules:

1. Idempotent. A port of our name is used with whatever chardev it has; so a va-host that was killed
   and started again finds what it made, and a port that the command line made is as good.
2. What is missing is added in the order that QEMU needs: chardev, controller, port. What was added
   is taken away again if a later step fails.
3. A machine that cannot take a controller at run time (q35 without a free pcie-root-port) gets an error
   that names the options to start QEMU with.

Names follow the original virtagent; commands follow QEMU's qapi/char.json, qdev.json and qom.json.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtagent_protocol.errors import Forbidden, NotThere

from .errors import QemuError
from .qmp import QmpConnection

log = logging.getLogger(__name__)

PORT_NAME = "org.qemu.virtagent"
#: The port of QEMU's own guest agent.
QGA_PORT_NAME = "org.qemu.guest_agent.0"
CHARDEV_ID = "virtagent"
CONTROLLER_ID = "virtagent-serial"

#: Where QOM keeps devices with an id and without one.
_PERIPHERALS = ("/machine/peripheral", "/machine/peripheral-anon")
#: A chardev's description in query-chardev, such as ``disconnected:unix:/run/x,server=on``.
_SOCKET = re.compile(r"(?:disconnected:)?unix:(?P<path>.+?)(?:,server(?:=on)?)?")
#: The types of a controller; each transport of virtio has its own.
CONTROLLER = re.compile(r"virtio-serial-(pci|device|ccw)")
_CHILD = re.compile(r"child<(.+)>")

#: What to add to QEMU's command line where nothing can be plugged in.
COLD_PLUG = (
    f"-device virtio-serial,id={CONTROLLER_ID} at QEMU's start, "
    "or a free -device pcie-root-port,id=ID,chassis=N to plug one into"
)


@dataclass(frozen=True)
class PortSpec:
    """A port as we make it.

    Attributes:
        suffix: what its name, its ids and its socket have behind the common part.
        fixed_name: its name in the guest, if that is another.
    """

    suffix: str = ""
    fixed_name: str = ""

    @property
    def name(self) -> str:
        """The port's name in the guest."""
        return self.fixed_name or PORT_NAME + self.suffix

    @property
    def chardev(self) -> str:
        """Id of its chardev."""
        return CHARDEV_ID + self.suffix

    @property
    def id(self) -> str:
        """Id of the virtserialport."""
        return f"{CHARDEV_ID}{self.suffix}-port"

    def socket(self, base: Path) -> Path:
        """Where its chardev listens, given where that of a single port would."""
        return base.with_name(base.name + self.suffix)


#: One port for both directions; or one for the host's calls and one for the guest's, named after what the
#: agent in the guest is there.
ONE_PORT = (PortSpec(),)
TWO_PORTS = (PortSpec("-server"), PortSpec("-client"))
#: That of QEMU's guest agent, for a guest that has no other.
QGA_PORT = (PortSpec("-qga", QGA_PORT_NAME),)


@dataclass(frozen=True)
class Channel:
    """A virtagent port of a running QEMU.

    Attributes:
        chardev: id (label) of the port's chardev.
        path: the unix socket on which QEMU listens for it.
        port: id of the virtserialport; "" if it has none.
        open: whether the guest has the port open.
    """

    chardev: str
    path: Path
    port: str
    open: bool


def cold_plug_arguments(specs: Sequence[PortSpec], path: Path) -> list[str]:
    """Return the QEMU options that make the same devices at start, for `va-host launch`.

    Args:
        specs: the ports.
        path: where the chardev of a single port listens.
    """
    arguments = ["-device", f"virtio-serial,id={CONTROLLER_ID}"]
    for spec in specs:
        # A comma in an option's value is written twice (qemu(1)).
        escaped = str(spec.socket(path)).replace(",", ",,")
        arguments += [
            "-chardev",
            f"socket,id={spec.chardev},path={escaped},server=on,wait=off",
            "-device",
            f"virtserialport,id={spec.id},chardev={spec.chardev},name={spec.name}",
        ]
    return arguments


async def find_channel(qmp: QmpConnection, spec: PortSpec) -> Channel | None:
    """Return the virtagent port of that name, if the machine has it.

    Raises:
        NotThere: it has one, but its chardev is no unix socket to connect to.
    """
    async for path, kind in devices(qmp):
        if kind == "virtserialport" and await device_property(qmp, path, "name") == spec.name:
            chardev = await device_property(qmp, path, "chardev")
            port = path.rpartition("/")[2] if path.startswith(_PERIPHERALS[0] + "/") else ""
            return await _channel(qmp, spec, chardev, port)
    return None


async def ensure_channel(qmp: QmpConnection, spec: PortSpec, path: Path) -> Channel:
    """Return the virtagent port of that name; where there is none, plug one in.

    Args:
        qmp: QEMU.
        spec: the port.
        path: where a new chardev is to listen. QEMU makes the socket.

    Raises:
        NotThere: the machine takes no controller at run time; the message names the remedy.
        Forbidden: QEMU may not make the socket at *path*.
        QemuError: QEMU refused for another reason.
    """
    found = await find_channel(qmp, spec)
    if found is not None:
        log.info("found port %s with chardev %s at %s", spec.name, found.chardev, found.path)
        return found
    added_chardev = await _ensure_chardev(qmp, spec.chardev, path)
    try:
        added_controller = await _ensure_controller(qmp)
        try:
            await qmp.execute(
                "device_add",
                {"driver": "virtserialport", "id": spec.id, "chardev": spec.chardev, "name": spec.name},
            )
        except QemuError:
            if added_controller:
                await qmp.execute("device_del", {"id": CONTROLLER_ID})
            raise
    except (QemuError, NotThere):
        if added_chardev:
            await qmp.execute("chardev-remove", {"id": spec.chardev})
        raise
    log.info("plugged in port %s with chardev %s at %s", spec.name, spec.chardev, path)
    return await _channel(qmp, spec, spec.chardev, spec.id)


async def _ensure_chardev(qmp: QmpConnection, chardev: str, path: Path) -> bool:
    """Return whether the chardev had to be added."""
    chardevs = {info["label"]: info for info in await qmp.execute("query-chardev")}
    if chardev in chardevs:
        return False
    # QEMU listens before it answers, but it does not remove a file that is in its way.
    path.unlink(missing_ok=True)
    address = {"type": "unix", "data": {"path": str(path)}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    try:
        await qmp.execute("chardev-add", {"id": chardev, "backend": backend})
    except QemuError as error:
        if "Permission denied" in str(error):
            raise Forbidden(
                f"QEMU may not make the socket {path}: {error}; "
                "choose a --runtime-dir that QEMU's user may write to"
            ) from None
        raise
    return True


async def _ensure_controller(qmp: QmpConnection) -> bool:
    """Return whether a controller had to be added."""
    kinds = {path: kind async for path, kind in devices(qmp)}
    if any(CONTROLLER.match(kind) for kind in kinds.values()):
        return False
    root_ports = [path.rpartition("/")[2] for path, kind in kinds.items() if kind == "pcie-root-port"]
    refusals = []
    controller: dict[str, object] = {"driver": "virtio-serial-pci", "id": CONTROLLER_ID}
    if not (await qmp.execute("query-kvm"))["enabled"]:
        # It saves an exit of a virtual machine, and costs an emulated one a change of threads.
        controller["ioeventfd"] = False
    # Without a bus QEMU takes the first that fits, which on q35 is pcie.0, which takes nothing at run time.
    for bus in (None, *root_ports):
        arguments = controller | ({"bus": bus} if bus else {})
        try:
            await qmp.execute("device_add", arguments)
        except QemuError as error:
            refusals.append(str(error))
        else:
            return True
    raise NotThere(
        f"there is no virtio-serial controller, and none can be plugged in ({'; '.join(refusals)}): "
        f"add {COLD_PLUG}"
    )


async def _channel(qmp: QmpConnection, spec: PortSpec, chardev: str, port: str) -> Channel:
    chardevs = {info["label"]: info for info in await qmp.execute("query-chardev")}
    info = chardevs.get(chardev)
    if info is None:
        raise NotThere(
            f"port {spec.name} has no chardev; unplug it (device_del {port or '…'}) and attach again"
        )
    path = socket_path(info["filename"])
    if path is None:
        raise NotThere(
            f"the chardev of port {spec.name} is '{info['filename']}', not a listening unix socket: "
            f"make it -chardev socket,id={chardev},path=…,server=on,wait=off"
        )
    return Channel(chardev, path, port, bool(info["frontend-open"]))


def socket_path(filename: str) -> Path | None:
    """Return the unix socket of a chardev as `query-chardev` describes it; None if it is something else."""
    match = _SOCKET.fullmatch(filename)
    return None if match is None else Path(match["path"])


async def is_taken(qmp: QmpConnection, channel: Channel) -> bool:
    """Return whether some program is connected to the channel's chardev."""
    chardevs = {info["label"]: info for info in await qmp.execute("query-chardev")}
    info = chardevs.get(channel.chardev)
    return info is not None and not info["filename"].startswith("disconnected:")


async def devices(qmp: QmpConnection) -> AsyncIterator[tuple[str, str]]:
    """Yield QOM path and type of every device that a user or management tool made."""
    for parent in _PERIPHERALS:
        for item in await qmp.execute("qom-list", {"path": parent}):
            match = _CHILD.fullmatch(item["type"])
            if match is not None:
                yield f"{parent}/{item['name']}", match[1]


async def device_property(qmp: QmpConnection, path: str, name: str) -> str:
    """Return a property of the device at a QOM path."""
    return str(await qmp.execute("qom-get", {"path": path, "property": name}))
