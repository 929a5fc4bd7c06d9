"""libvirt for the tests: its daemon, started by hand on directories of its own, and a domain of our guest.

The rules:

1. Nothing of the machine's own libvirt is used or seen, be it there or not. For root, libvirtd has fixed
   directories; it gets a mount namespace in which ours lie in their places. For others they are named by XDG
   variables.
2. libvirtd runs in the foreground, is ended by its own pid, and its domain before that.
3. QEMU's output goes straight to a file (``stdio_handler``): virtlogd is not needed.
4. The disk is an overlay, since the domain's guest reboots and keeps what was installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.guest.qemu import CPUS, IMAGE, MEMORY, VmError
from tests.guest.vm import Vm

#: Seconds for a virsh command; it takes a tenth of one.
COMMAND_TIMEOUT = 60.0
#: Seconds until libvirtd, started now, answers.
START_TIMEOUT = 60.0
#: Seconds from SIGTERM to SIGKILL.
STOP_TIMEOUT = 20.0
#: Seconds between two looks at what sends no event.
LOOK_EVERY = 0.1

NAME = "virtagent"
#: Where Debian's libvirtd is; /usr/sbin is not on every user's PATH.
_PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])

#: Directories of a libvirtd that runs as root: fixed when it was compiled.
_FIXED = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/run/libvirt")

#: As libvirt-daemon-system makes it, whose other half is units, which would run on a developer's machine.
_USER, _USER_ID = "libvirt-qemu", 64055

_QEMU_CONF = """\
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
_QEMU_CONF_ROOT = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
"""
_LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:stderr"
"""

_DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{cpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{image}/vmlinuz</kernel>
    <initrd>{image}/initrd.img</initrd>
    <cmdline>root=/dev/vda rw console=ttyS0 quiet</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{directory}/disk.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <interface type='user'><model type='virtio'/></interface>
    <serial type='file'><source path='{directory}/console.log'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-chardev'/>
    <qemu:arg value='socket,id=shell,path={directory}/shell.sock,server=on,wait=off'/>
    <qemu:arg value='-device'/>
    <qemu:arg value='pci-serial,chardev=shell,addr=0x1e'/>
  </qemu:commandline>
</domain>
"""


class DomainGuest(Vm):
    """The guest of a domain: its log and its shell. QEMU is libvirt's."""

    def _check_alive(self) -> None:
        pass


class Libvirt:
    """A libvirtd that runs, and virsh."""

    def __init__(self, directory: Path, uri: str, environment: dict[str, str]) -> None:
        self.directory = directory
        self._uri = uri
        self._environment = environment

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run virsh to its end."""
        with trio.fail_after(COMMAND_TIMEOUT):
            return await trio.run_process(
                ["virsh", "--connect", self._uri, *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=self._environment,
            )

    async def virsh(self, *arguments: str) -> str:
        """Run virsh, which must succeed, and return what it printed."""
        done = await self.run(*arguments)
        assert done.returncode == 0, (arguments, done)
        return done.stdout.decode()

    async def refusal(self, *arguments: str) -> str:
        """Run virsh, which must fail, and return what it says of that."""
        done = await self.run(*arguments)
        assert done.returncode != 0, (arguments, done)
        return done.stderr.decode()

    async def until(self, state: str, timeout: float) -> None:
        """Wait until the domain is in a state, such as ``shut off``."""
        with trio.fail_after(timeout):
            while (await self.virsh("domstate", NAME)).strip() != state:
                await trio.sleep(LOOK_EVERY)

    async def agent_answers(self, timeout: float) -> None:
        """Wait until the domain's agent answers."""
        with trio.fail_after(timeout):
            while (await self.run("qemu-agent-command", NAME, '{"execute":"guest-ping"}')).returncode:
                await trio.sleep(LOOK_EVERY)

    async def start_domain(self) -> DomainGuest:
        """Define and start the domain; it boots meanwhile."""
        backing = ["-b", str(IMAGE / "disk.img"), "-F", "raw"]
        disk = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self.directory / "disk.qcow2")]
        await trio.run_process(disk)
        definition = self.directory / "domain.xml"
        emulator = shutil.which("qemu-system-x86_64")
        definition.write_text(
            _DOMAIN.format(
                name=NAME,
                memory=MEMORY,
                cpus=CPUS,
                image=IMAGE,
                emulator=emulator,
                directory=self.directory,
            )
        )
        await self.virsh("define", str(definition))
        await self.virsh("start", NAME)
        return DomainGuest(self.directory)


@asynccontextmanager
async def running_libvirt(directory: Path) -> AsyncIterator[Libvirt]:
    """Run libvirtd within the block; skip the test where there is none. Its domain ends with it."""
    daemon = shutil.which("libvirtd", path=_PROGRAM_PATH)
    if daemon is None or shutil.which("virsh") is None:
        pytest.skip("there is no libvirt: scripts/setup.sh installs it where Debian has it")
    command, uri, variables = _private(directory, daemon, root=os.geteuid() == 0)
    environment = {**os.environ, **variables, "LC_ALL": "C.UTF-8"}
    log = directory / "libvirtd.log"
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
    libvirt = Libvirt(directory, uri, environment)
    try:
        with trio.fail_after(START_TIMEOUT):
            while (await libvirt.run("list")).returncode:
                if process.poll() is not None:
                    raise VmError(f"libvirtd ended with status {process.returncode}")
                await trio.sleep(LOOK_EVERY)
        yield libvirt
    except BaseException:
        print(f"{log} ends with:\n{log.read_text(errors='replace')[-4000:]}")
        raise
    finally:
        with trio.CancelScope(shield=True):
            with contextlib.suppress(trio.TooSlowError):
                await libvirt.run("destroy", NAME)
            process.terminate()
            with trio.move_on_after(STOP_TIMEOUT):
                await process.wait()
            process.kill()
            await process.wait()


def _private(directory: Path, daemon: str, *, root: bool) -> tuple[list[str], str, dict[str, str]]:
    """Write the configuration; return how to start libvirtd, its address, and the variables for both."""
    home = directory / "libvirt"
    places = {fixed: home / fixed.strip("/").replace("/", "-") for fixed in _FIXED}
    configuration = places["/etc/libvirt"] if root else home / "config" / "libvirt"
    for place in (*places.values(), configuration, home / "run", home / "cache"):
        place.mkdir(parents=True, exist_ok=True)
    (configuration / "qemu.conf").write_text(_QEMU_CONF + (_QEMU_CONF_ROOT if root else ""))
    (configuration / "libvirtd.conf").write_text(_LIBVIRTD_CONF)
    command = [daemon, "--pid-file", str(home / "libvirtd.pid")]
    if not root:
        return command, "qemu:///session", {f"XDG_{name}": str(home / place) for name, place in _XDG.items()}
    for name in ("passwd", "group"):
        places[f"/etc/{name}"] = _with_user(Path("/etc") / name, home / name)
    # There has to be something to lay ours over; what is made for that is empty.
    mounts = f"mkdir -p {' '.join(_FIXED)} && "
    mounts += " && ".join(f"mount --bind '{place}' {fixed}" for fixed, place in places.items())
    in_namespace = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    socket = places["/run/libvirt"] / "libvirt-sock"
    return [*in_namespace, *command], f"qemu+unix:///system?socket={socket}", {}


def _with_user(table: Path, copy: Path) -> Path:
    """Copy a table of users or groups, with the one that libvirtd insists on though it is to use another."""
    lines = [line for line in table.read_text().splitlines() if not line.startswith(f"{_USER}:")]
    entry = [
        "x",
        str(_USER_ID),
        *([str(_USER_ID), "", "/", "/bin/false"] if table.name == "passwd" else [""]),
    ]
    copy.write_text("\n".join([*lines, ":".join([_USER, *entry]), ""]))
    return copy


_XDG = {"CONFIG_HOME": "config", "CACHE_HOME": "cache", "RUNTIME_DIR": "run", "DATA_HOME": "data"}
