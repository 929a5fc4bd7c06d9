"""What QEMU's guest agent and ours are both asked in one guest: every command of the schema, right and wrong.

The rules:

1. A case is about one command, and is a list of steps. One agent goes through all of them, then the other;
   what each step brought is compared (`qga_compare`).
2. A step asks (`Ask`), runs a shell command in the guest (`Shell`), or sends bytes that are no command
   (`Raw`). What a shell command prints is compared, too: it shows what the agent did.
3. A case leaves the guest as it found it. Nothing here ends the guest: power and sleep are done by scripts
   that take the place of the programs and note how they were called.
4. Wrong arguments are derived from each command's arguments, see `wrong_arguments`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tests.guest.qga_cases_files import files, programs
from tests.guest.qga_steps import ROOM, Ask, Case, Raw, Shell, b64, case
from virtagent_guest.methods.qga import COMMANDS
from virtagent_guest.methods.qga.command import Command

#: One of each type of JSON, and more of those that come close.
_VALUES: tuple[Any, ...] = (None, {"a": 1}, "text", 1.5, -1, True, [], ["text", 1], [{}])


def wrong_arguments(command: Command) -> Iterator[Case]:
    """Yield a command with each argument of a wrong type, missing, or with one too many."""
    required = [argument for argument in command.arguments if not argument.optional]
    for missing in required[:1]:
        yield case(command.name, f"without {missing.name}", Ask(command.name))
    if not required:
        yield case(command.name, "with an argument too many", Ask(command.name, {"no-such": 1}))
    for i, argument in enumerate(command.arguments):
        before = {earlier.name: _right(earlier.type.name) for earlier in command.arguments[:i]}
        for value in _VALUES:
            if not _may_be_right(argument.type.name, value):
                # Whatever is wrong with this one, or with the last, is told before the command is executed.
                arguments = {**before, argument.name: value, "no-such": 1}
                yield case(command.name, f"{argument.name} = {value!r}", Ask(command.name, arguments))


def _right(type_name: str) -> Any:
    return {"str": "text", "int": 1, "bool": True, "uint64": 1}.get(type_name, [])


def _may_be_right(type_name: str, value: Any) -> bool:
    if type_name == "str":
        return isinstance(value, str)
    if type_name in ("int", "uint64"):
        return type(value) is int
    if type_name == "bool":
        return isinstance(value, bool)
    if type_name.startswith("["):
        return bool(value == [])
    return isinstance(value, int)


def _garbage() -> Iterator[Case]:
    ping = b'{"execute":"guest-ping"}'
    for name, data in {
        "two at once": ping + ping,
        "an unknown command": b'{"execute":"guest-nope","id":7}',
        "a name that is no text": b'{"execute":3,"id":1}',
        "no name": b'{"arguments":{}}',
        "a member too many": b'{"execute":"guest-ping","more":1}',
        "arguments that are no object": b'{"execute":"guest-ping","arguments":[1]}',
        "an id": b'{"execute":"guest-ping","id":{"a":[1,null,1.5]}}',
        "no JSON": b"garbage\n" + ping,
        "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + ping,
        "a command cut off by 0xFF": ping[:10] + b"\xff" + ping,
        "control characters": b"\x00\x01\x02\x7f\x80\xfe" + ping,
        "brackets that do not fit": b'{"execute":"guest-ping"}}]}[{]}' + ping,
    }.items():
        yield case("guest-ping", name, Raw(data))


def _basic() -> Iterator[Case]:
    yield case("guest-ping", "plain", Ask("guest-ping"))
    for command in ("guest-sync", "guest-sync-delimited"):
        for number in (0, 7, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63):
            yield case(command, f"id {number}", Ask(command, {"id": number}))
    yield case("guest-info", "plain", Ask("guest-info"))


def _clock() -> Iterator[Case]:
    yield case("guest-get-time", "plain", Ask("guest-get-time"))
    yield case(
        "guest-set-time", "to a time", Ask("guest-set-time", {"time": time.time_ns()}), Ask("guest-get-time")
    )
    for number in (-1, 2**62):
        yield case("guest-set-time", f"to {number}", Ask("guest-set-time", {"time": number}))
    yield case("guest-set-time", "from the hardware clock", Ask("guest-set-time"), Ask("guest-get-time"))
    yield case("guest-get-timezone", "plain", Ask("guest-get-timezone"))


def _hardware() -> Iterator[Case]:
    for command in (
        *("guest-get-vcpus", "guest-get-memory-blocks", "guest-get-memory-block-info"),
        *("guest-get-cpustats", "guest-get-load", "guest-get-disks", "guest-get-diskstats"),
        *("guest-get-fsinfo", "guest-network-get-interfaces", "guest-network-get-route", "guest-get-devices"),
    ):
        yield case(command, "plain", Ask(command))

    def cpus(name: str, *wanted: tuple[int, bool]) -> Case:
        listed = [{"logical-id": number, "online": online} for number, online in wanted]
        asked = Ask("guest-set-vcpus", {"vcpus": listed})
        shown = Shell("cat /sys/devices/system/cpu/online; echo 1 >/sys/devices/system/cpu/cpu1/online")
        return case("guest-set-vcpus", name, asked, Ask("guest-get-vcpus"), shown)

    yield cpus("none")
    yield cpus("one offline", (1, False))
    yield cpus("one offline and back", (1, False), (1, True))
    yield cpus("all online", (0, True), (1, True))
    yield cpus("the one that cannot go", (0, False))
    yield cpus("one that is not there", (9, True))
    yield cpus("the second is not there", (1, False), (9, True))
    yield cpus("a negative one", (-1, True))
    without = {"vcpus": [{"logical-id": 1}]}
    yield case("guest-set-vcpus", "without online", Ask("guest-set-vcpus", without))

    def blocks(name: str, *wanted: tuple[int, bool]) -> Case:
        listed = [{"phys-index": number, "online": online} for number, online in wanted]
        return case("guest-set-memory-blocks", name, Ask("guest-set-memory-blocks", {"mem-blks": listed}))

    yield blocks("none")
    yield blocks("those that are online", (0, True), (1, True))
    yield blocks("one that is not there", (99999, True), (99998, False))
    yield blocks("a negative one", (-1, True))


def _file_systems() -> Iterator[Case]:
    yield case("guest-fstrim", "plain", Ask("guest-fstrim"))
    yield case("guest-fstrim", "a minimum", Ask("guest-fstrim", {"minimum": 4096}))
    yield case("guest-fstrim", "a negative minimum", Ask("guest-fstrim", {"minimum": -1}))
    status, thaw, freeze = (Ask(f"guest-fsfreeze-{word}") for word in ("status", "thaw", "freeze"))
    yield case("guest-fsfreeze-status", "plain", status)
    yield case("guest-fsfreeze-thaw", "what is not frozen", thaw)
    refused = [
        *(Ask("guest-get-time"), Ask("guest-file-open", {"path": "/etc/hostname"}), Ask("guest-nope")),
        *(
            Ask("guest-get-time", {"x": 1}),
            Ask("guest-get-devices"),
            Ask("guest-ping"),
            Ask("guest-sync", {"id": 1}),
        ),
        *(
            Ask("guest-fsfreeze-freeze-list", {"mountpoints": ["/"]}),
            Ask("guest-shutdown", {"mode": "sleep"}),
        ),
    ]
    yield case("guest-fsfreeze-freeze", "all", freeze, status, Ask("guest-info"), freeze, thaw, status, thaw)
    yield case("guest-fsfreeze-freeze", "others meanwhile", freeze, *refused, thaw)
    for listed in (["/nowhere", "/proc"], ["/mnt/", "/mnt", "/mnt"]):
        asked = Ask("guest-fsfreeze-freeze-list", {"mountpoints": listed})
        yield case("guest-fsfreeze-freeze-list", f"{listed}", asked, status, thaw)


def _system() -> Iterator[Case]:
    yield case("guest-get-osinfo", "plain", Ask("guest-get-osinfo"))
    mounted = Shell(f"printf '%s\\n' ID=x 'NAME=\"a \\\"b\\\"\"' \"VERSION='1'\" '# c' BUILD=1 "
                    f">{ROOM}/os-release; mount --bind {ROOM}/os-release /etc/os-release")  # fmt: skip
    yield case(
        "guest-get-osinfo", "quotes", mounted, Ask("guest-get-osinfo"), Shell("umount /etc/os-release")
    )
    yield case("guest-get-host-name", "plain", Ask("guest-get-host-name"))
    named = Shell("hostname other.example")
    back = Shell("hostname virtagent-guest")
    yield case("guest-get-host-name", "changed meanwhile", named, Ask("guest-get-host-name"), back)
    yield case("guest-get-users", "nobody", Ask("guest-get-users"))
    yield case(
        "guest-get-users", "two logins", Shell(WRITE_UTMP), Ask("guest-get-users"), Shell("rm /run/utmp")
    )


#: Three logins of two users in utmp, as login(1) would write them: type 7, and times of 32 bits.
WRITE_UTMP = """python3 - <<'END'
import struct
def login(user, seconds, kind=7):
    return struct.pack("=h2xi32s4s32s256s4xiii16x20x", kind, 1, b"tty", b"1", user, b"", 0, seconds, 250000)
entries = login(b"root", 1700000009) + login(b"", 1, 8)
entries += login(b"other", 1700000005) + login(b"root", 1700000001)
open("/run/utmp", "wb").write(entries)
END"""


def _accounts() -> Iterator[Case]:
    make = Shell("rm -rf /home/alice/.ssh")
    unset = Shell("usermod --password x alice")
    shadow = Shell("grep ^alice: /etc/shadow | cut -d: -f2 | cut -c 1-3")

    def password(username: str, secret: bytes | str, crypted: bool = False) -> Ask:
        encoded = b64(secret) if isinstance(secret, bytes) else secret
        given = {"username": username, "password": encoded, "crypted": crypted}
        return Ask("guest-set-user-password", given)

    for name, asked in {
        "plain": password("alice", "pass: wörd'".encode()),
        "crypted": password("alice", b"$6$a$b", crypted=True),
        "empty": password("alice", b""),
        "a line feed": password("alice", b"a\nroot:b"),
        "no base64": password("alice", "*"),
        "no such user": password("nobody-here", b"secret"),
        "a line feed in the name": password("alice\nroot", b"secret"),
        "a colon in the name": password("alice:x", b"secret"),
        "no name": password("", b"secret"),
    }.items():
        yield case("guest-set-user-password", name, unset, asked, shadow)

    one, two, three = ("ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two", "ssh-rsa CCCC three")
    get = Ask("guest-ssh-get-authorized-keys", {"username": "alice"})
    directory = "/home/alice/.ssh"
    look = "stat -c '%n %U %G %a' . * && cat authorized_keys"
    shown = Shell(f"[ -e {directory} ] && cd {directory} && {look}")
    written = Shell(
        f"mkdir -m 700 {directory}; printf '%s\\n' '# c' '{one}' '' ' {two}' >{directory}/authorized_keys; "
        f"chown -R alice: {directory}"
    )

    def keys(verb: str, *listed: str, **more: Any) -> Ask:
        return Ask(f"guest-ssh-{verb}-authorized-keys", {"username": "alice", "keys": list(listed), **more})

    yield case("guest-ssh-get-authorized-keys", "no file", make, get)
    yield case("guest-ssh-get-authorized-keys", "comments and spaces", make, written, get)
    linked = Shell(f"mkdir {directory}; ln -s /etc/shadow {directory}/authorized_keys")
    yield case("guest-ssh-get-authorized-keys", "a link", make, linked, Ask(get.command, get.arguments))
    for verb in ("get", "add", "remove"):
        more = {} if verb == "get" else {"keys": [one]}
        asked = Ask(f"guest-ssh-{verb}-authorized-keys", {"username": "nobody-here", **more})
        yield case(asked.command, "no such user", asked)
    add, remove = "guest-ssh-add-authorized-keys", "guest-ssh-remove-authorized-keys"
    yield case(add, "the first", make, keys("add", one), shown, get)
    yield case(add, "one more", make, written, keys("add", three), shown, get)
    yield case(add, "one that is there", make, written, keys("add", one), shown)
    yield case(add, "none", make, keys("add"), shown)
    yield case(add, "instead of the others", make, written, keys("add", three, reset=True), shown)
    yield case(add, "none instead of the others", make, written, keys("add", reset=True), shown)
    yield case(add, "two", make, keys("add", one, three), shown, get)
    yield case(add, "the same twice", make, keys("add", three, three), shown)
    yield case(remove, "one", make, written, keys("remove", one), shown)
    yield case(remove, "one that is not there", make, written, keys("remove", three), shown)
    yield case(remove, "from no file", make, keys("remove", one), shown)
    for wrong in ("", "  ", "# c", "a\nb", "a\rb", "no key at all"):
        yield case(add, f"{wrong!r}", make, keys("add", wrong), shown)
        yield case(remove, f"{wrong!r}", make, keys("remove", wrong), shown)


def _power() -> Iterator[Case]:
    note = f'#!/bin/sh\necho "${{0##*/}} $*" >>{ROOM}/called\n'
    programs = "shutdown poweroff halt reboot"
    # Debian's are links to systemctl.
    stand_in = Shell(f"cd /sbin; for p in {programs}; do mv $p $p.real; "
                     f"printf '%s' '{note}' >$p; chmod +x $p; done")  # fmt: skip
    back = Shell(
        f"cat {ROOM}/called; rm {ROOM}/called; cd /sbin; for p in {programs}; do mv $p.real $p; done"
    )
    for mode in (None, "powerdown", "halt", "reboot"):
        asked = Ask("guest-shutdown", {} if mode is None else {"mode": mode})
        yield case("guest-shutdown", f"mode {mode}", stand_in, asked, back)
    for mode in ("sleep", "", "Powerdown"):
        yield case("guest-shutdown", f"mode {mode!r}", Ask("guest-shutdown", {"mode": mode}))

    def systemctl(status: int, verb: int) -> Shell:
        script = f'{note}test "$1" = status && exit {status}\nexit {verb}\n'
        return Shell(
            f"printf '%s' '{script}' >{ROOM}/systemctl; chmod +x {ROOM}/systemctl; "
            f"mount --bind {ROOM}/systemctl /usr/bin/systemctl"
        )

    put_back = Shell(f"umount /usr/bin/systemctl; cat {ROOM}/called; rm {ROOM}/called")
    for word in ("disk", "ram", "hybrid"):
        command = f"guest-suspend-{word}"
        yield case(command, "by systemd", systemctl(3, 0), Ask(command), put_back)
    yield case(
        "guest-suspend-hybrid", "systemd fails", systemctl(3, 1), Ask("guest-suspend-hybrid"), put_back
    )
    yield case("guest-suspend-hybrid", "no systemd", systemctl(4, 1), Ask("guest-suspend-hybrid"), put_back)
    # The kernel's own, which would really do it: what was written is at the begin of the file.
    kernel = Shell(f"echo 'freeze mem disk' >{ROOM}/state; mount --bind {ROOM}/state /sys/power/state")
    told = Shell(f"umount /sys/power/state; head -c 3 {ROOM}/state")
    for word in ("disk", "ram"):
        asked = Ask(f"guest-suspend-{word}")
        yield case(asked.command, "by the kernel", systemctl(4, 1), kernel, asked, told, put_back)
        yield case(
            asked.command, "by the kernel, systemd fails", systemctl(3, 1), kernel, asked, told, put_back
        )


def cases() -> list[Case]:
    """Return all cases: of each command what it does, then what is wrong with its arguments."""
    topics = (
        *(_basic(), _garbage(), _clock(), files(), programs(), _hardware(), _system(), _accounts(), _power()),
        _file_systems(),
    )
    wrong = [case for command in COMMANDS.values() for case in wrong_arguments(command)]
    return [case for topic in topics for case in topic] + wrong
