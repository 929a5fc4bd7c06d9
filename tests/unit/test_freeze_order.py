"""Which mounts are frozen, and in which order (virtagent_guest.freeze.mounts and freezing)."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtagent_guest.freeze.freezing import in_order
from virtagent_guest.freeze.mounts import Mount, mounts

TABLE = rb"""22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 28 0:26 / /run rw,nosuid shared:9 - tmpfs tmpfs rw,size=46M
40 28 254:16 / /srv/a\040b rw - ext4 /dev/vdb rw
41 40 254:32 / /srv/a\040b/c\134d rw - xfs /dev/vdc rw
42 28 7:0 / /loop rw - ext4 /dev/loop0 rw
43 28 254:16 /sub /bind rw shared:2 master:3 - ext4 /dev/vdb rw
44 28 0:44 / /net rw - nfs4 server:/export rw
45 28 0:45 / /pool rw - btrfs /no/such/device rw
46 28 broken / /x rw - ext4 /dev/vdx rw
47 28 254:48
"""


def table(path: Path, content: bytes = TABLE) -> list[Mount]:
    file = path / "mountinfo"
    file.write_bytes(content)
    return mounts(file)


def test_only_what_lies_on_a_block_device_is_listed_in_mount_order(tmp_path: Path) -> None:
    assert [(m.path, m.kind, m.source, m.device) for m in table(tmp_path)] == [
        ("/", "ext4", "/dev/vda", (254, 0)),
        ("/srv/a b", "ext4", "/dev/vdb", (254, 16)),
        ("/srv/a b/c\\d", "xfs", "/dev/vdc", (254, 32)),
        ("/loop", "ext4", "/dev/loop0", (7, 0)),
        ("/bind", "ext4", "/dev/vdb", (254, 16)),
    ]


def test_a_mount_point_may_be_any_bytes(tmp_path: Path) -> None:
    (mount,) = table(tmp_path, b"1 2 8:0 / /\xff\\012x rw - ext4 /dev/sda rw\n")
    assert mount.path.encode(errors="surrogateescape") == b"/\xff\nx"


def test_a_device_is_frozen_after_all_that_was_mounted_later_than_it_first_was(tmp_path: Path) -> None:
    # The loop device's file may lie on vdb, whose bind mount is younger than the loop.
    order = in_order(table(tmp_path), None)
    assert [[m.path for m in candidates] for candidates in order] == [
        ["/loop"],
        ["/srv/a b/c\\d"],
        ["/srv/a b", "/bind"],
        ["/"],
    ]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"/bind", "/"}, [["/bind"], ["/"]]),
        ({"/bind", "/srv/a b", "/loop"}, [["/loop"], ["/srv/a b", "/bind"]]),
        ({"/nowhere", "/run"}, []),
        ((), []),
    ],
)
def test_a_list_of_mount_points_chooses_and_does_not_order(
    tmp_path: Path, wanted: set[str], expected: list[list[str]]
) -> None:
    order = in_order(table(tmp_path), wanted)
    assert [[m.path for m in candidates] for candidates in order] == expected
