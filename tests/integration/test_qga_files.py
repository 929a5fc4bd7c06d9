"""guest-file-*: files of this machine by handles."""

from __future__ import annotations

import base64
import os
import stat
import threading
from pathlib import Path

import pytest
import trio

from tests.integration.qgacalls import LOOK_EVERY, SOON, b64, call, error_of
from virtagent_guest.methods.qga import Caller, QgaError, handles
from virtagent_guest.methods.qga.files import READ_MAX
from virtagent_guest.methods.qga.handles import Handles, OpenFile


async def write_file(path: Path, data: bytes, mode: str = "w") -> None:
    handle = await call("guest-file-open", path=str(path), mode=mode)
    assert await call("guest-file-write", handle=handle, buf_b64=b64(data)) == {
        "count": len(data),
        "eof": False,
    }
    await call("guest-file-close", handle=handle)


async def read_file(path: Path, count: int, caller: Caller | None = None) -> bytes:
    handle = await call("guest-file-open", path=str(path))
    content = b""
    while True:
        part = await call("guest-file-read", caller, handle=handle, count=count)
        data = base64.b64decode(part["buf-b64"])
        assert part["count"] == len(data) <= count
        content += data
        if part["eof"]:
            await call("guest-file-close", handle=handle)
            return content


async def test_a_file_is_written_and_read_byte_for_byte(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    await write_file(tmp_path / "Datei ä", content)
    assert (tmp_path / "Datei ä").read_bytes() == content
    assert await read_file(tmp_path / "Datei ä", 100_001) == content
    await write_file(tmp_path / "Datei ä", b"more", "ab")
    assert await read_file(tmp_path / "Datei ä", 2**21) == content + b"more"
    await write_file(tmp_path / "Datei ä", b"new", "w+b")
    assert await read_file(tmp_path / "Datei ä", 3) == b"new"


async def test_eof_is_told_when_it_was_met_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123456")
    handle = await call("guest-file-open", path=str(tmp_path / "file"), mode="r")
    assert await call("guest-file-read", handle=handle, count=6) == {
        "count": 6,
        "buf-b64": "MTIzNDU2",
        "eof": False,
    }
    assert await call("guest-file-read", handle=handle) == {"count": 0, "buf-b64": "", "eof": True}
    assert await call("guest-file-read", handle=handle, count=0) == {"count": 0, "buf-b64": "", "eof": False}
    await call("guest-file-close", handle=handle)


async def test_without_a_count_4_kib_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    handle = await call("guest-file-open", path=str(tmp_path / "file"))
    assert (await call("guest-file-read", handle=handle))["count"] == 4096
    await call("guest-file-close", handle=handle)


async def test_a_reply_that_is_bounded_loses_nothing_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 10)
    assert await read_file(tmp_path / "file", 2560, Caller(reply_max=100)) == bytes(range(256)) * 10


async def test_seeking_knows_words_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    handle = await call("guest-file-open", path=str(tmp_path / "file"), mode="r+")
    for offset, whence, position in (
        (3, "set", 3),
        (2, "cur", 5),
        (-1, "end", 9),
        (1, 0, 1),
        (1, 1, 2),
        (0, 2, 10),
    ):
        moved = await call("guest-file-seek", handle=handle, offset=offset, whence=whence)
        assert moved == {"position": position, "eof": False}
    await call("guest-file-seek", handle=handle, offset=4, whence="set")
    await call("guest-file-write", handle=handle, buf_b64=b64(b"abcdef"), count=2)
    # No flush is needed for others to see it.
    assert (tmp_path / "file").read_bytes() == b"0123ab6789"
    await call("guest-file-flush", handle=handle)
    assert await error_of("guest-file-seek", handle=handle, offset=0, whence=3) == "invalid whence code 3"
    assert "Invalid argument" in await error_of("guest-file-seek", handle=handle, offset=-1, whence="set")
    await call("guest-file-close", handle=handle)


async def test_a_new_file_is_its_owners_whatever_the_umask_and_an_old_one_stays_as_it_is(
    tmp_path: Path,
) -> None:
    before = os.umask(0o077)
    try:
        await write_file(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    (tmp_path / "file").chmod(0o600)
    await write_file(tmp_path / "file", b"")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


async def test_what_cannot_be_opened_read_or_written_says_why(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert await error_of("guest-file-open", path=missing) == (
        f"failed to open file '{missing}' (mode: 'r'): No such file or directory"
    )
    assert await error_of("guest-file-open", path=missing, mode="rx") == "invalid file open mode 'rx'"
    handle = await call("guest-file-open", path="/proc/self/mem")
    assert await error_of("guest-file-read", handle=handle) == "failed to read file: Input/output error"
    assert "failed to write to file: Bad file" in await error_of(
        "guest-file-write", handle=handle, buf_b64="eA=="
    )
    for count in (-1, READ_MAX + 1):
        assert await error_of("guest-file-read", handle=handle, count=count) == (
            f"value '{count}' is invalid for argument count"
        )
    assert await error_of("guest-file-write", handle=handle, buf_b64="eA==", count=2) == (
        "value '2' is invalid for argument count"
    )
    assert "invalid characters" in await error_of("guest-file-write", handle=handle, buf_b64="!")
    await call("guest-file-close", handle=handle)
    assert await error_of("guest-file-close", handle=handle) == f"handle '{handle}' has not been found"


async def test_a_fifo_without_data_is_an_error_at_once_and_with_data_gives_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    handle = await call("guest-file-open", path=str(tmp_path / "fifo"), mode="r+")
    assert "failed to read file: Resource temporarily unavailable" in await error_of(
        "guest-file-read", handle=handle
    )
    await call("guest-file-write", handle=handle, buf_b64=b64(b"abc"))
    part = await call("guest-file-read", handle=handle, count=100)
    assert part == {"count": 3, "buf-b64": b64(b"abc"), "eof": False}
    filled = await call("guest-file-write", handle=handle, buf_b64=b64(bytes(2**20)))
    assert 0 < filled["count"] < 2**20
    await call("guest-file-close", handle=handle)


async def test_a_file_that_never_answers_holds_up_only_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    table = Handles()
    dead, alive = [await table.open(str(tmp_path / "file"), "r") for _ in range(2)]
    answer = threading.Event()
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(handles.WAITING_MAX):
                nursery.start_soon(table.use, dead, "read file", lambda file: answer.wait())
            with trio.fail_after(SOON):
                while table.find(dead)._pending < handles.WAITING_MAX:
                    await trio.sleep(LOOK_EVERY)
                with pytest.raises(QgaError, match="on this handle have not ended"):
                    await table.use(dead, "read file", OpenFile.flush)
                data, _ = await table.use(alive, "read file", lambda file: file.read(1))
                assert data == b"x"
            # A caller that gives up is let go; the threads are not.
            nursery.cancel_scope.cancel()
    finally:
        answer.set()
    with trio.fail_after(SOON):
        while True:
            try:
                await table.close(dead)
                break
            except QgaError:
                await trio.sleep(LOOK_EVERY)
    await table.close(alive)


async def test_so_many_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "HANDLES_MAX", 2)
    (tmp_path / "file").write_bytes(b"")
    table = Handles()
    opened = [await table.open(str(tmp_path / "file"), "r") for _ in range(2)]
    assert len(set(opened)) == 2
    with pytest.raises(QgaError, match="close some of them"):
        await table.open(str(tmp_path / "file"), "r")
    for handle in opened:
        await table.close(handle)


async def test_handles_of_one_agent_mean_nothing_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    before, after = Handles(), Handles()
    handle = await before.open(str(tmp_path / "file"), "r")
    other = await after.open(str(tmp_path / "file"), "r")
    assert handle != other
    with pytest.raises(QgaError, match=f"handle '{handle}' has not been found"):
        after.find(handle)
    await before.close(handle)
    await after.close(other)
