"""Files and trees to and from a real guest over a virtio-serial port."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import trio

from tests.guest.lab import LOOK_EVERY, Attached

#: Bytes of the file that goes both ways; odd, so that no part ends on a border of anything.
BIG = 64_000_001
#: Seconds for a copy of that; the guest's processor is emulated, and its disk may be slow.
COPY_TIMEOUT = 240.0


async def copy(attached: Attached, *arguments: str) -> Any:
    """Copy, and return the JSON that it prints."""
    result = await attached.lab.run("cp", "--json", *arguments, timeout=COPY_TIMEOUT)
    assert result.status == 0, result
    told = json.loads(result.stdout)
    print(f"{arguments}: {told['bytes'] / told['seconds'] / 1e6:.1f} MB/s, {told['digest']['name']}")
    return told


async def test_a_large_file_goes_both_ways_and_its_digests_agree(attached: Attached, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(1_000_003) * (BIG // 1_000_003))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    told = await copy(attached, str(source), "demo:/root/big")
    assert told["failed"] == 0
    assert (await attached.in_guest("sha256sum </root/big")).split()[0] == digest
    told = await copy(attached, "demo:/root/big", str(back))
    assert hashlib.sha256(back.read_bytes()).hexdigest() == digest
    await attached.in_guest("rm /root/big")


async def test_sha256_can_be_asked_for_whatever_it_costs(attached: Attached, tmp_path: Path) -> None:
    await attached.in_guest("head -c 3000001 /dev/urandom >/root/some")
    told = await copy(attached, "--digest", "sha256", "demo:/root/some", str(tmp_path / "some"))
    digest = (await attached.in_guest("sha256sum </root/some")).split()[0]
    assert told["digest"] == {"name": "sha256", "value": digest}


def make_tree(tree: Path) -> None:
    (tree / "sub").mkdir(parents=True)
    for number in range(50):
        (tree / "sub" / str(number)).write_bytes(b"%d" % number)
    (tree / "link").symlink_to("sub/1")
    with open(os.fsencode(tree) + b"/\xff", "wb") as file:
        file.write(b"x")
    with (tree / "sparse").open("wb") as file:
        file.truncate(4 << 30)


async def test_a_tree_goes_both_ways(attached: Attached, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    make_tree(tree)
    assert (await copy(attached, "-r", str(tree), "demo:/root/tree"))["entries"] == 55
    assert (await attached.in_guest("cat /root/tree/link; ls /root/tree/sub | wc -l")) == "150\n"
    assert int((await attached.in_guest("du -sk /root/tree")).split()[0]) < 1000
    assert (await copy(attached, "-r", "demo:/root/tree", str(tmp_path / "back")))["entries"] == 55
    result = await trio.run_process(["diff", "-r", "--no-dereference", tree, tmp_path / "back"], check=False)
    assert result.returncode == 0
    lab = attached.lab
    listed = await lab.run("ls", "demo:/root/tree")
    assert listed.stdout.splitlines() == [b"link", b"sparse", b"sub", b"\xff"]
    assert (await lab.run("rm", "-r", "--json", "demo:/root/tree")).stdout == b'{"removed": 55}\n'


async def test_a_copy_into_the_guest_that_was_cut_is_gone_on_with(attached: Attached, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1_000_003) * 64)
    lab = attached.lab
    process = await trio.lowlevel.open_process(lab.command_line("cp", str(source), "demo:/root/cut"))
    part = "/root/.cut.va-part"
    with trio.fail_after(COPY_TIMEOUT):
        while int(await attached.in_guest(f"stat -c %s {part} 2>/dev/null || echo 0")) < 2_000_000:
            assert process.poll() is None, "it was over before it could be cut"
            await trio.sleep(LOOK_EVERY)
    process.kill()
    await process.wait()
    assert (await attached.in_guest("test -e /root/cut || echo none")) == "none\n"
    await copy(attached, "--resume", str(source), "demo:/root/cut")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert (await attached.in_guest("sha256sum </root/cut; rm /root/cut")).split()[0] == digest
    assert (await attached.in_guest(f"test -e {part} || echo none")) == "none\n"
