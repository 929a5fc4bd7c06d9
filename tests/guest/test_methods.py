"""The guest's methods on the real thing, over a virtio-serial port."""

from __future__ import annotations

import hashlib
import re
import time

from tests.guest.lab import ALL_BYTES, Attached, make_all_bytes

#: Bytes of a file that takes several messages; odd, so that no part ends on a border of anything.
BIG = 3_000_001
#: Seconds in which an answer that must not wait for anything comes.
SOON = 5.0


async def test_a_binary_file_comes_as_it_is(attached: Attached) -> None:
    await make_all_bytes(attached.vm)
    result = await attached.lab.run("viewfile", "demo", "/root/all-bytes")
    assert (result.status, result.stdout) == (0, ALL_BYTES)


async def test_a_part_of_a_file_is_what_offset_and_count_say(attached: Attached) -> None:
    await make_all_bytes(attached.vm)
    lab = attached.lab
    for offset, count in ((0, 1), (13, 300), (255, 1), (len(ALL_BYTES) - 2, 100), (len(ALL_BYTES), 1)):
        window = ("--offset", str(offset), "--count", str(count))
        result = await lab.run("viewfile", "demo", "/root/all-bytes", *window)
        assert (result.status, result.stdout) == (0, ALL_BYTES[offset : offset + count]), window


async def test_a_file_of_several_messages_is_exact_to_the_byte(attached: Attached) -> None:
    await attached.in_guest(f"head -c {BIG} /dev/urandom >/root/big")
    digest = (await attached.in_guest("sha256sum </root/big")).split()[0]
    result = await attached.lab.run("viewfile", "demo", "/root/big")
    assert (result.status, len(result.stdout)) == (0, BIG), result.stderr
    assert hashlib.sha256(result.stdout).hexdigest() == digest


async def test_a_file_too_large_for_one_answer_is_refused_with_the_remedy(attached: Attached) -> None:
    await attached.in_guest(f"truncate -s {BIG} /root/sparse")
    error = await attached.lab.fail(1, "qmp", "va_viewfile", "filepath=/root/sparse", "format=base64")
    assert "max file size (1536000 bytes) exceeded: /root/sparse: read it in parts" in error


async def test_files_of_proc_and_sys_are_read_to_their_end(attached: Attached) -> None:
    lab = attached.lab
    for path in ("/proc/version", "/proc/filesystems", "/sys/kernel/mm/transparent_hugepage/enabled"):
        assert await lab.succeed("viewfile", path) == await attached.in_guest(f"cat {path}"), path


async def test_what_is_no_file_is_refused_without_waiting(attached: Attached) -> None:
    await attached.in_guest("rm -f /root/fifo && mkfifo /root/fifo")
    lab = attached.lab
    for path, reason in (
        ("/root/missing", "No such file or directory"),
        ("/root", "a directory, not a regular file"),
        ("/root/fifo", "a FIFO, not a regular file"),
        ("/dev/vda", "a block device, not a regular file"),
        ("/dev/console", "a character device, not a regular file"),
    ):
        started = time.monotonic()
        error = await lab.fail(1, "viewfile", path)
        assert f"refused: open failed: {path}: {reason} (fault 6)" in error
        assert time.monotonic() - started < SOON
    assert "path must be absolute" in await lab.fail(1, "viewfile", "etc/hostname")


async def test_the_end_of_the_kernels_log_is_what_the_guest_has(attached: Attached) -> None:
    mark = f"virtagent test {time.time_ns()}"
    await attached.in_guest(f"echo '{mark}' >/dev/kmsg")
    lines = (await attached.lab.succeed("viewdmesg")).splitlines()
    assert len(lines) > 50
    assert all(re.match(r"\[ *\d+\.\d{6}\] ", line) for line in lines)
    assert any(line.endswith(f"] {mark}") for line in lines)
