"""The cases of guest-file-* and guest-exec*; see `qga_cases`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.guest.qga_steps import ROOM, Ask, Case, Saved, Shell, Step, b64, case


def files() -> Iterator[Case]:
    handle = Saved(1)
    text = f"{ROOM}/text"
    make = Shell(f"[ ! -e {ROOM}/new ] || rm {ROOM}/new; printf 'some text\\n' >{text}")
    close = Ask("guest-file-close", {"handle": handle})

    def opened(path: str, mode: str | None, *steps: Step) -> tuple[Step, ...]:
        how = {} if mode is None else {"mode": mode}
        return (make, Ask("guest-file-open", {"path": path, **how}), *steps, close)

    def read(**more: Any) -> Ask:
        return Ask("guest-file-read", {"handle": handle, **more})

    def write(data: str, **more: Any) -> Ask:
        return Ask("guest-file-write", {"handle": handle, "buf-b64": data, **more})

    def seek(offset: int, whence: Any) -> Ask:
        return Ask("guest-file-seek", {"handle": handle, "offset": offset, "whence": whence})

    new = f"{ROOM}/new"
    shown = Shell(f"stat -c '%s %a %U' {new}; cat {new}")
    # By the shell itself: hundreds of programs would take longer than all else.
    content = Shell(f"IFS= read -r -d '' text <{new}; printf %q \"$text\"")
    for mode in ("w", "wb", "a", "r+", "w+", "a+", "ab+", "rb+", "r+b"):
        path = text if mode.startswith("r") else new
        yield case(
            "guest-file-open",
            f"mode {mode}",
            *opened(path, mode, write(b64(b"x"))),
            Shell(f"IFS= read -r -d '' text <{path}; printf %q \"$text\""),
        )
    for mode in ("", "x", "rw", "rw+", "e"):
        yield case(
            "guest-file-open", f"mode {mode!r}", make, Ask("guest-file-open", {"path": text, "mode": mode})
        )
    for path in (f"{ROOM}/none", ROOM, "", "/dev/none/x", "/proc/1/mem/x"):
        for mode in ("r", "w"):
            asked = Ask("guest-file-open", {"path": path, "mode": mode})
            yield case("guest-file-open", f"{path!r}, mode {mode}", make, asked)
    yield case("guest-file-open", "a new file", *opened(new, "w"), shown)
    others: dict[str, dict[str, Any]] = {
        "guest-file-close": {},
        "guest-file-read": {},
        "guest-file-flush": {},
        "guest-file-write": {"buf-b64": "eA=="},
        "guest-file-seek": {"offset": 0, "whence": 0},
    }
    for command, more in others.items():
        for number in (0, -1, 2**40):
            yield case(command, f"handle {number}", Ask(command, {"handle": number, **more}))
    yield case("guest-file-close", "twice", *opened(text, None), close)
    yield case("guest-file-read", "to the end", *opened(text, None, read(), read(), read(count=0)))
    yield case(
        "guest-file-read", "in pieces", *opened(text, "r", read(count=4), read(count=4), read(count=9))
    )
    for number in (0, -1, 10, 48 * 2**20, 48 * 2**20 + 1, 2**62):
        yield case("guest-file-read", f"count {number}", *opened(text, "r", read(count=number)))
    yield case("guest-file-read", "a FIFO without data", *opened(f"{ROOM}/fifo", "r+", read()))
    fifo = opened(
        f"{ROOM}/fifo", "r+", write(b64(b"abc")), Ask("guest-file-flush", {"handle": handle}), read(count=9)
    )
    yield case("guest-file-read", "a FIFO with less data", *fifo)
    yield case("guest-file-read", "what is open for writing only", *opened(text, "w", read()))
    yield case("guest-file-read", "a directory", *opened(ROOM, "r", read()))
    flush = Ask("guest-file-flush", {"handle": handle})
    data = b64(b"written\0\xff")
    yield case("guest-file-write", "plain", *opened(new, "w", write(data), flush, shown), shown)
    yield case("guest-file-write", "a part", *opened(new, "w", write(data, count=4)), content)
    for number in (-1, 10, 2**40):
        yield case(
            "guest-file-write", f"count {number} of 9", *opened(new, "w", write(data, count=number)), content
        )
    yield case("guest-file-write", "what is open for reading only", *opened(text, "r", write(data), flush))
    yield case("guest-file-write", "nothing", *opened(new, "w", write("")), content)
    for wrong in ("*", "eA", "eA=", "e", "eA==eA==", "eA = =\n", "eA-_", "\u00e9"):
        yield case("guest-file-write", f"base64 {wrong!r}", *opened(new, "w", write(wrong)), content)
    for offset, whence in (
        *((4, "set"), (4, 0), (-2, "end"), (-2, 2), (20, "end"), (0, "cur"), (0, 1)),
        *((-1, "set"), (-20, "end"), (0, 3), (0, -1), (0, "sideways"), (2**62, 0)),
    ):
        yield case(
            "guest-file-seek", f"{offset} from {whence!r}", *opened(text, "r", seek(offset, whence), read())
        )
    after = opened(text, "r", read(count=3), seek(2, "cur"), read(count=3), seek(-1, 1), read())
    yield case("guest-file-seek", "after a read", *after)
    mixed = opened(text, "r+", read(count=3), seek(0, "cur"), write(b64(b"XY")), seek(0, "set"), read())
    yield case("guest-file-seek", "between read and write", *mixed)
    yield case("guest-file-flush", "plain", *opened(text, "r+", flush))


def programs() -> Iterator[Case]:
    ended = Ask("guest-exec-status", {"pid": Saved(0, "pid")}, until="exited")
    again = Ask("guest-exec-status", {"pid": Saved(0, "pid")})

    def ran(name: str, path: str, *arg: str, **more: Any) -> Case:
        arguments = {"path": path, "arg": list(arg), "capture-output": True, **more}
        return case("guest-exec", name, Ask("guest-exec", arguments), ended)

    sh = "/bin/sh"
    both = "echo out; echo err >&2; exit 3"
    yield case("guest-exec", "no arguments, no capture", Ask("guest-exec", {"path": "/bin/true"}), ended)
    yield ran("both outputs and a status", sh, "-c", both)
    yield ran("no capture", sh, "-c", both, **{"capture-output": False})
    yield ran("no output", sh, "-c", "exit 255")
    yield ran("by name", "echo", "a b", "", "c")
    yield ran("killed", sh, "-c", "kill -9 $$")
    yield ran("input", "cat", **{"input-data": b64(b"bytes \0\xff")})
    yield ran("input that is not read", "true", **{"input-data": b64(bytes(10**5))})
    yield ran("no base64", "cat", **{"input-data": "*"})
    yield ran("environment", "/usr/bin/env", env=["A=1", "B=", "C=a=b"])
    yield ran("by name, with an environment", "env", env=["A=1"])
    # Not what systemd gives to each unit for itself.
    yield ran("its own environment", sh, "-c", "env | grep -v 'ID=\\|STREAM=\\|NOTIFY' | sort")
    yield ran(
        "where and as whom", sh, "-c", "pwd; id -u; id -G; umask; ulimit -c; cat /proc/self/oom_score_adj"
    )
    yield ran("its signals", sh, "-c", "grep Sig[BIC] /proc/self/status; ls /proc/self/fd")
    yield ran("much output", sh, "-c", "head -c 300000 /dev/zero")
    for name, path in {
        "not there": "/no/such/program",
        "no such name": "no-such-program",
        "a directory": "/root",
        "no program": "/etc/hostname",
        "no path": "",
    }.items():
        yield ran(name, path)
    yield ran("a NUL", "echo", "a\0b")
    yield case("guest-exec-status", "asked twice", Ask("guest-exec", {"path": "true"}), ended, again)
    sleeping = Ask("guest-exec", {"path": "sleep", "arg": ["60"], "capture-output": True})
    yield case("guest-exec-status", "while it runs", sleeping, again, Shell("pkill -x sleep"), ended)
    for number in (0, -1, 1, 2**40):
        yield case("guest-exec-status", f"pid {number}", Ask("guest-exec-status", {"pid": number}))
