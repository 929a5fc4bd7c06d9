"""libvirt, unchanged, on a guest whose va-guest has the place of qemu-ga.

Once with `virsh`, as administrators and scripts use it; one domain and one boot for all of its commands.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

from tests.guest.libvirtlab import NAME, DomainGuest, Libvirt, running_libvirt
from tests.guest.test_qga_port import FILES, ROOT
from tests.guest.vm import BOOT_TIMEOUT

PING = '{"execute":"guest-ping"}'
STATUS = '{"execute":"guest-fsfreeze-status"}'

#: Seconds by which a busy machine explains that clocks differ.
TOLERANCE = 20.0
#: Seconds for a guest to end.
END_TIMEOUT = 90.0


async def install(guest: DomainGuest) -> None:
    """Let the guest's agent take the place of qemu-ga."""
    script = "set -e\n"
    for source, target in FILES.items():
        encoded = base64.b64encode((ROOT / source).read_bytes()).decode()
        script += f"mkdir -p $(dirname {target})\nbase64 -d <<<{encoded} >{target}\n"
    script += "udevadm control --reload\nsystemctl daemon-reload\nsystemctl start va-guest.service\n"
    # A network, for whoever asks for addresses. What is set here lasts until the reboot.
    script += "udevadm settle\nfor device in /sys/class/net/e*; do\n"
    script += (
        "busybox ip addr add 10.0.2.15/24 dev ${device##*/}\nbusybox ip link set ${device##*/} up\ndone\n"
    )
    # The file on the disk outlives the domain's end only if it is written.
    done = await guest.console(f"{script}useradd --create-home alice; sync")
    assert done.status == 0, done


async def in_guest(guest: DomainGuest, command: str) -> str:
    done = await guest.console(command)
    assert done.status == 0, done
    return done.output


def fields(text: str) -> dict[str, str]:
    """Return what lines of ``name : value`` say."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


async def test_virsh_finds_all_that_it_asks_an_agent_for(tmp_path: Path) -> None:
    async with running_libvirt(tmp_path) as libvirt:
        guest = await libvirt.start_domain()
        await guest.booted()
        assert "not connected" in await libvirt.refusal("qemu-agent-command", NAME, PING)
        await install(guest)
        await libvirt.agent_answers(BOOT_TIMEOUT)

        await asks(libvirt)
        await sets_the_clock(libvirt)
        await freezes(libvirt, guest)
        await changes_accounts(libvirt, guest)
        await turns_a_processor_off(libvirt, guest)

        size = guest.log_size()
        await libvirt.virsh("reboot", NAME, "--mode", "agent")
        await guest.booted(after=size)
        await libvirt.agent_answers(BOOT_TIMEOUT)
        info = json.loads(await libvirt.virsh("qemu-agent-command", NAME, '{"execute":"guest-info"}'))
        assert info["return"]["agent"].startswith("va-guest ")

        await libvirt.virsh("shutdown", NAME, "--mode", "agent")
        await libvirt.until("shut off", END_TIMEOUT)


async def asks(libvirt: Libvirt) -> None:
    """Ask for what there is."""
    assert json.loads(await libvirt.virsh("qemu-agent-command", NAME, PING)) == {"return": {}}
    error = await libvirt.refusal(
        "qemu-agent-command", NAME, '{"execute":"guest-file-read","arguments":{"handle":1}}'
    )
    assert "handle '1' has not been found" in error
    info = fields(await libvirt.virsh("guestinfo", NAME))
    assert (info["os.id"], info["os.version-id"], info["hostname"]) == ("debian", "12", "virtagent-guest")
    assert (info["fs.count"], info["fs.0.mountpoint"], info["fs.0.fstype"]) == ("1", "/", "ext4")
    assert (info["fs.0.disk.0.alias"], info["disk.0.alias"]) == ("vda", "vda")
    assert (info["user.count"], info["timezone.name"], info["timezone.offset"]) == ("0", "UTC", "0")
    assert info["if.count"] == "2"
    assert (await libvirt.virsh("domfsinfo", NAME)).split()[-4:] == ["/", "vda", "ext4", "vda"]
    assert "10.0.2.15/24" in await libvirt.virsh("domifaddr", NAME, "--source", "agent")
    assert (await libvirt.virsh("domhostname", NAME, "--source", "agent")).strip() == "virtagent-guest"
    await libvirt.virsh("domfstrim", NAME)


async def sets_the_clock(libvirt: Libvirt) -> None:
    """Ask for the time, and set it in each of the three ways."""

    async def off() -> float:
        return abs(int(fields(await libvirt.virsh("domtime", NAME))["Time"]) - time.time())

    assert await off() < TOLERANCE
    await libvirt.virsh("domtime", NAME, "--time", "1700000000")
    assert await off() > TOLERANCE
    await libvirt.virsh("domtime", NAME, "--now")
    assert await off() < TOLERANCE
    await libvirt.virsh("domtime", NAME, "--sync")
    assert await off() < TOLERANCE


async def freezes(libvirt: Libvirt, guest: DomainGuest) -> None:
    """Freeze and thaw, and take a snapshot in between as a backup does."""
    assert "Froze 1 filesystem" in await libvirt.virsh("domfsfreeze", NAME)
    assert json.loads(await libvirt.virsh("qemu-agent-command", NAME, STATUS)) == {"return": "frozen"}
    assert "has been disabled" in await libvirt.refusal("domtime", NAME)
    assert "Thawed 1 filesystem" in await libvirt.virsh("domfsthaw", NAME)
    assert "Froze 1 filesystem" in await libvirt.virsh("domfsfreeze", NAME, "--mountpoint", "/")
    assert "Thawed 1 filesystem" in await libvirt.virsh("domfsthaw", NAME)
    await libvirt.virsh("snapshot-create-as", NAME, "backup", "--disk-only", "--quiesce", "--no-metadata")
    assert json.loads(await libvirt.virsh("qemu-agent-command", NAME, STATUS)) == {"return": "thawed"}
    await in_guest(guest, "touch /root/written && sync /root/written")


async def changes_accounts(libvirt: Libvirt, guest: DomainGuest) -> None:
    """Set a password and keys."""
    await libvirt.virsh("set-user-password", NAME, "alice", "pass: word")
    hashed = (await in_guest(guest, "grep ^alice: /etc/shadow | cut -d: -f2")).strip()
    check = "import crypt, sys; print(crypt.crypt(sys.argv[1], sys.argv[2]))"
    said = await in_guest(guest, f"python3 -W ignore -c '{check}' 'pass: word' '{hashed}'")
    assert said.strip() == hashed
    assert "failed to set user password" in await libvirt.refusal(
        "set-user-password", NAME, "nobody-here", "x"
    )
    keys = libvirt.directory / "keys"
    keys.write_text("ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n")
    await libvirt.virsh("set-user-sshkeys", NAME, "alice", "--file", str(keys))
    assert await in_guest(guest, "cat /home/alice/.ssh/authorized_keys") == keys.read_text()
    # Some releases of virsh print them without line feeds in between.
    shown = await libvirt.virsh("get-user-sshkeys", NAME, "alice")
    assert shown.replace("\n", "") == keys.read_text().replace("\n", "")


async def turns_a_processor_off(libvirt: Libvirt, guest: DomainGuest) -> None:
    """Take a processor offline and back, in both of virsh's ways."""
    shown = fields(await libvirt.virsh("guestvcpus", NAME))
    assert (shown["vcpus"], shown["online"], shown["offlinable"]) == ("0-1", "0-1", "1")
    await libvirt.virsh("guestvcpus", NAME, "--cpulist", "1", "--disable")
    assert await in_guest(guest, "nproc") == "1\n"
    await libvirt.virsh("guestvcpus", NAME, "--cpulist", "1", "--enable")
    assert await in_guest(guest, "nproc") == "2\n"
    await libvirt.virsh("setvcpus", NAME, "1", "--guest")
    assert (await libvirt.virsh("vcpucount", NAME, "--guest")).strip() == "1"
    await libvirt.virsh("setvcpus", NAME, "2", "--guest")
