"""Tree streams: records whole, byte by byte and cut; what a hostile end can send; trees as they went in."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.trees import digests
from virtagent_protocol.trees.entries import Entry, check_component, from_json, to_json
from virtagent_protocol.trees.landing import KEEP_FROM, part_name
from virtagent_protocol.trees.listen import KEPT_MAX, Listener
from virtagent_protocol.trees.pack import Packer, Sent, Source
from virtagent_protocol.trees.place import DEPTH_MAX, TreeError, open_place
from virtagent_protocol.trees.records import (
    DATA_MAX,
    JSON_MAX,
    Kind,
    Record,
    RecordReader,
    encode,
    encode_offset,
    head,
)
from virtagent_protocol.trees.unpack import Received, Unpacker

VECTORS = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "trees.json").read_text())
START = encode(Kind.START, digest="crc32")
END = encode(Kind.END, entries=0, bytes=0, errors=0)
EMPTY = encode(Kind.CLOSE, size=0, digest="00000000")


def merged(records: list[Record]) -> list[Record]:
    """Put the parts of data together, which come as they like."""
    result: list[Record] = []
    for record in records:
        if record.kind is Kind.DATA and result and result[-1].kind is Kind.DATA:
            result[-1] = Record(Kind.DATA, {}, bytes(result[-1].data) + bytes(record.data))
        else:
            result.append(Record(record.kind, record.fields, bytes(record.data)))
    return result


def read(*parts: bytes) -> list[Record]:
    reader = RecordReader()
    return merged([record for part in parts for record in reader.feed(part)])


class Transfer:
    """A sender and a receiver, and what went between them."""

    def __init__(self, source: Path | bytes, target: Path | bytes, **options: bool) -> None:
        self._options = options
        self.source, self.target = os.fsencode(source), os.fsencode(target)
        self.names: list[str] | None = None

    def run(self, *, cut_at: int | None = None, piece: int = 0) -> tuple[Sent, Received]:
        """Send all; or cut the stream after so many bytes."""
        source = Source(self.source, recursive=True)
        unpacker = Unpacker(open_place(self.target), digests=self.names, **self._options)
        packer, heard = Packer(source, self.names), Listener()
        left = cut_at
        try:
            for said in unpacker.begin():
                heard.feed(said)
            for chunk in packer.chunks(heard):
                data = bytes(chunk) if left is None else bytes(chunk)[:left]
                for part in [data[i : i + piece] for i in range(0, len(data), piece)] if piece else [data]:
                    unpacker.feed(part)
                if left is not None:
                    left -= len(data)
                    if not left:
                        break
        finally:
            unpacker.close()
            source.close()
        heard.feed(unpacker.result())
        return packer.sent, unpacker.received


def receive(target: Path, *records: bytes, **options: bool) -> Received:
    """Unpack what a sender of the test says."""
    unpacker = Unpacker(open_place(os.fsencode(target)), digests=["crc32"], **options)
    try:
        list(unpacker.begin())
        for record in records:
            unpacker.feed(record)
    finally:
        unpacker.close()
    return unpacker.received


# --- Records -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["records"], ids=lambda case: str(case["name"]))
def test_the_records_of_the_vectors_are_these_bytes(case: dict[str, object]) -> None:
    data = str(case["bytes"]).encode("latin-1")
    (record,) = read(data)
    assert record.kind.name == case["kind"]
    if "fields" in case:
        assert record.fields == case["fields"]
        assert encode(record.kind, **record.fields) == data
    else:
        assert record.data == str(case["data"]).encode("latin-1")
        assert head(record.kind, len(record.data)) + bytes(record.data) == data


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: str(case["name"]))
def test_what_the_vectors_refuse_is_refused(case: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError):
        receive(tmp_path / "x", case["bytes"].encode("latin-1"))
    assert list(tmp_path.iterdir()) == []


def test_records_come_out_the_same_however_they_arrive() -> None:
    records = [
        START,
        Entry("file", b"a\xff", size=3).encode(),
        encode_offset(2**40),
        head(Kind.DATA, 70_000) + bytes(range(256)) * 273 + bytes(112),
        EMPTY,
        END,
    ]
    whole = read(b"".join(records))
    assert [record.kind.value for record in whole] == [record[:1] for record in records]
    assert read(*records) == whole
    assert read(*(bytes([byte]) for byte in b"".join(records))) == whole


def test_every_beginning_of_a_stream_is_a_beginning_of_its_records() -> None:
    data = START + Entry("file").encode() + head(Kind.DATA, 3) + b"abc" + EMPTY + END
    whole = read(data)
    for length in range(len(data)):
        found = read(data[:length])
        if found and found[-1].kind is Kind.DATA:
            found.pop()
        assert found == whole[: len(found)]


@pytest.mark.parametrize(
    "data",
    [
        b"Q\0\0\0\1x",
        head(Kind.DATA, DATA_MAX + 1),
        head(Kind.ENTRY, JSON_MAX + 1),
        head(Kind.OFFSET, 9),
        head(Kind.START, 0),
        head(Kind.START, 3) + b"[1]",
        head(Kind.START, 3) + b"NaN",
        head(Kind.START, 2) + b"\xff\xfe",
        head(Kind.START, 60_000) + b"[" * 60_000,
    ],
)
def test_what_is_no_record_is_refused_before_it_is_held(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read(data)


@given(st.binary(max_size=300))
def test_any_bytes_give_records_or_one_kind_of_error(data: bytes) -> None:
    try:
        read(data)
        read(START + data)
    except RemoteProtocolError:
        pass


# --- Names -------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_names_of_any_bytes_survive_json(name: bytes) -> None:
    assert from_json(json.loads(json.dumps(to_json(name)))) == name


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"x" * 256, b"../x"])
def test_a_name_that_leads_elsewhere_is_none(name: bytes, tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError):
        check_component(name)
    entry = encode(Kind.ENTRY, type="file", name=to_json(name), mode=0o644)
    with pytest.raises(RemoteProtocolError):
        receive(tmp_path / "x", START, Entry("directory", mode=0o755).encode(), entry, EMPTY)
    assert not list((tmp_path / "x").iterdir())


# --- Hostile senders ---------------------------------------------------------------------------------


def test_a_path_through_a_link_that_was_just_sent_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    received = receive(
        tmp_path / "x",
        START,
        Entry("directory", mode=0o755).encode(),
        Entry("symlink", b"l", target=os.fsencode(outside)).encode(),
        Entry("directory", b"l", mode=0o755).encode(),
        Entry("file", b"owned").encode(),
        EMPTY,
        encode(Kind.LEAVE),
        encode(Kind.LEAVE),
        END,
    )
    assert list(outside.iterdir()) == []
    assert [path for path, _ in received.errors] == [b"l"]
    assert received.done


def test_a_link_in_place_of_a_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".x.va-part").symlink_to(victim)
    receive(tmp_path / "x", START, Entry("file").encode(), EMPTY, END)
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "x").read_bytes() == b""
    os.link(victim, tmp_path / ".x.va-part")
    receive(tmp_path / "x", START, Entry("file").encode(), EMPTY, END, resume=True)
    assert victim.read_bytes() == b"precious"


def test_bits_that_lend_our_rights_are_set_only_on_demand(tmp_path: Path) -> None:
    sent = (START, Entry("file", mode=0o6755).encode(), EMPTY, END)
    receive(tmp_path / "x", *sent)
    assert not stat.S_IMODE((tmp_path / "x").stat().st_mode) & 0o7000
    receive(tmp_path / "x", *sent, preserve=True)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o6755


def test_what_is_out_of_place_ends_the_stream(tmp_path: Path) -> None:
    file, tree = Entry("file").encode(), Entry("directory", mode=0o755).encode()
    for number, records in enumerate(
        [
            (file,),
            (START, START),
            (START, encode(Kind.LEAVE)),
            (START, EMPTY),
            (START, head(Kind.DATA, 1) + b"x"),
            (START, file, file),
            (START, file, END),
            (START, tree, END),
            (START, tree, encode(Kind.LEAVE), tree),
            (START, END, file),
            (START, Entry("file", b"named").encode()),
            (START, tree, file),
            (START, tree, *[Entry("directory", b"d", mode=0o755).encode()] * (DEPTH_MAX + 1)),
            (encode(Kind.START, digest="md5"),),
            (encode(Kind.RESULT, entries=1, failed=0),),
            (START, encode(Kind.ENTRY, type="device", mode=0)),
            (START, encode(Kind.ENTRY, type="file", mode=0o20000)),
            (START, encode(Kind.ENTRY, type="file", mode=0, start=-1)),
            (START, encode(Kind.ENTRY, type="file", mode=0, mtime_ns=2**70)),
            (START, encode(Kind.ENTRY, type="file", mode=True)),
            (START, encode(Kind.ENTRY, type="symlink", mode=0)),
        ]
    ):
        with pytest.raises(RemoteProtocolError):
            receive(tmp_path / str(number), *records)


def test_a_file_that_is_not_what_was_sent_does_not_get_its_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    close = encode(Kind.CLOSE, size=3, digest="00000000")
    received = receive(tmp_path / "x", START, Entry("file").encode(), head(Kind.DATA, 3) + b"new", close, END)
    assert received.mismatches == received.failed == 1
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_offsets_behind_and_sizes_too_small_spoil_their_file_alone(tmp_path: Path) -> None:
    data = head(Kind.DATA, 3) + b"abc"
    for spoilt in (
        data + encode_offset(1) + EMPTY,
        data + encode(Kind.CLOSE, size=2, digest="352441c2"),
    ):
        received = receive(
            tmp_path / "t",
            START,
            Entry("directory", mode=0o755).encode(),
            Entry("file", b"bad").encode() + spoilt,
            Entry("file", b"good").encode() + data + encode(Kind.CLOSE, size=3, digest="352441c2"),
            encode(Kind.LEAVE),
            END,
        )
        assert [path for path, _ in received.errors] == [b"bad"]
        assert os.listdir(tmp_path / "t") == ["good"]


def test_a_receiver_can_tell_of_no_more_than_is_held() -> None:
    heard = Listener()
    said = b"".join(encode(Kind.KEPT, path=str(number), size=1, mtime_ns=1) for number in range(KEPT_MAX))
    heard.feed(said)
    with pytest.raises(RemoteProtocolError, match="more than it may"):
        heard.feed(encode(Kind.KEPT, path="one more", size=1, mtime_ns=1))


@pytest.mark.parametrize(
    "said",
    [
        encode(Kind.RESULT, entries=1),
        encode(Kind.RESULT, entries=1, failed=0, mismatches=0, errors=[["a"]]),
        encode(Kind.KEPT, path=5, size=1, mtime_ns=1),
        encode(Kind.GO, digests="sha256"),
        encode(Kind.GO, digests=[]) * 2,
        START,
    ],
)
def test_a_receiver_that_makes_no_sense_is_refused(said: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Listener().feed(said)


def test_no_digest_in_common_is_an_error(tmp_path: Path) -> None:
    heard = Listener()
    heard.feed(encode(Kind.GO, digests=["md5"]))
    source = Source(os.fsencode(__file__), recursive=False)
    with pytest.raises(RemoteProtocolError, match="no digest in common"):
        next(Packer(source).chunks(heard))
    source.close()


def test_sha256_is_used_unless_an_end_prefers_another() -> None:
    fast, slow = ["sha256", "crc32"], ["crc32", "sha256"]
    assert digests.choose(fast, fast) == "sha256"
    assert digests.choose(fast, slow) == digests.choose(slow, fast) == "crc32"
    assert digests.choose(slow, ["sha256"]) == digests.choose(["sha256"], slow) == "sha256"


# --- Whole transfers ---------------------------------------------------------------------------------


def described(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Return type, mode, time and content of everything in a tree."""
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, _, _, fd in os.fwalk(os.fsencode(root)):
        for name in [b".", *(os.fsencode(name) for name in os.listdir(fd))]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            found[os.path.relpath(path, os.fsencode(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: name not in (b".", b"..") and not set(b"/\0") & set(name) and not name.endswith(b"va-part")
)
TREES = st.recursive(
    st.one_of(st.binary(max_size=3000), st.binary(min_size=1, max_size=30).map(lambda data: data.hex())),
    lambda children: st.dictionaries(NAMES, children, max_size=5),
    max_leaves=12,
)


def build(path: bytes, tree: object) -> None:
    if isinstance(tree, dict):
        os.mkdir(path)
        for name, below in tree.items():
            build(os.path.join(path, name), below)
        os.chmod(path, 0o750)
    elif isinstance(tree, str):
        os.symlink(tree, path)
        return
    else:
        assert isinstance(tree, bytes)
        with open(path, "wb") as file:
            file.write(tree)
        os.chmod(path, 0o640)
    os.utime(path, ns=(10**18 + 7, 10**18 + 7))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=6), st.integers(0, 2000))
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[bytes, object], piece: int
) -> None:
    directory = tmp_path_factory.mktemp("trees")
    build(os.fsencode(directory / "in"), tree)
    sent, received = Transfer(directory / "in", directory / "out").run(piece=piece)
    assert (sent.errors, received.errors) == ([], [])
    assert sent.entries == received.entries
    assert described(directory / "out") == described(directory / "in")


@pytest.mark.parametrize("names", [["sha256"], ["crc32"]])
@pytest.mark.parametrize("size", [0, 1, 4096, KEEP_FROM - 1, 3 * KEEP_FROM + 5])
def test_a_file_of_any_size_arrives_with_the_digest_of_its_content(
    tmp_path: Path, size: int, names: list[str]
) -> None:
    (tmp_path / "in").write_bytes(os.urandom(size))
    transfer = Transfer(tmp_path / "in", tmp_path / "out")
    transfer.names = names
    sent, received = transfer.run()
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    digest = digests.new_digest(names[0])
    digest.update((tmp_path / "in").read_bytes())
    assert sent.digest == received.digest == digest.hexdigest()
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.seek(5 << 20)
        file.write(b"middle")
        file.truncate(8 << 30)


def test_a_sparse_file_stays_sparse_and_costs_what_is_in_it(tmp_path: Path) -> None:
    make_sparse(tmp_path / "in")
    Transfer(tmp_path / "in", tmp_path / "out").run()
    status = (tmp_path / "out").stat()
    assert status.st_size == 8 << 30
    assert status.st_blocks * 512 < 1 << 20
    with (tmp_path / "out").open("rb") as file:
        file.seek((5 << 20) - 1)
        assert file.read(8) == b"\0middle\0"


def test_a_file_that_is_one_hole_costs_nothing_and_files_of_sys_end_where_they_end(tmp_path: Path) -> None:
    with (tmp_path / "in").open("wb") as file:
        file.truncate(64 << 30)
    _, received = Transfer(tmp_path / "in", tmp_path / "out").run()
    assert (tmp_path / "out").stat().st_size == 64 << 30
    assert (received.errors, received.size) == ([], 0)
    for path in ("/sys/kernel/mm/transparent_hugepage/enabled", "/proc/version", "/proc/filesystems"):
        Transfer(Path(path), tmp_path / "out").run()
        assert (tmp_path / "out").read_bytes() == Path(path).read_bytes()


class Cutter:
    """A file whose transfer is cut, and gone on with."""

    def __init__(self, tmp_path: Path, fill: Callable[[Path], object]) -> None:
        self.source, self.target = tmp_path / "in", tmp_path / "out"
        self.part = tmp_path / os.fsdecode(part_name(b"out"))
        fill(self.source)

    def cut(self, at: int) -> None:
        Transfer(self.source, self.target).run(cut_at=at)
        assert not self.target.exists()

    def resume(self) -> tuple[Sent, Received]:
        return Transfer(self.source, self.target, resume=True).run()


@pytest.fixture
def cutter(tmp_path: Path) -> Cutter:
    return Cutter(tmp_path, lambda path: path.write_bytes(os.urandom(4 << 20)))


@pytest.mark.parametrize("at", [10, 1 << 20, (2 << 20) + 77, 3 << 20])
def test_a_cut_leaves_no_half_file_and_resume_sends_the_rest(cutter: Cutter, at: int) -> None:
    cutter.cut(at)
    assert cutter.part.exists() is (at > KEEP_FROM + 1000)
    _, received = cutter.resume()
    assert received.errors == []
    assert cutter.target.read_bytes() == cutter.source.read_bytes()
    assert not cutter.part.exists()


def test_resume_sends_only_what_is_missing_and_nothing_of_what_is_there(cutter: Cutter) -> None:
    cutter.cut(3 << 20)
    had = cutter.part.stat().st_size
    source = Source(os.fsencode(cutter.source), recursive=False)
    unpacker = Unpacker(open_place(os.fsencode(cutter.target)), resume=True)
    heard = Listener()
    for said in unpacker.begin():
        heard.feed(said)
    chunks = [bytes(chunk) for chunk in Packer(source).chunks(heard)]
    assert sum(map(len, chunks)) < (4 << 20) - had + 2000
    for chunk in chunks:
        unpacker.feed(chunk)
    unpacker.close()
    source.close()
    sent, received = cutter.resume()
    assert (sent.kept, received.kept, sent.size) == (1, 1, 0)


def test_a_part_of_another_content_is_found_out_and_the_next_copy_is_right(cutter: Cutter) -> None:
    cutter.cut(3 << 20)
    with cutter.part.open("r+b") as file:
        file.write(b"spoilt")
    _, received = cutter.resume()
    assert received.mismatches == 1
    assert not cutter.target.exists()
    _, received = cutter.resume()
    assert received.errors == []
    assert cutter.target.read_bytes() == cutter.source.read_bytes()


def test_a_sparse_file_is_gone_on_with(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        with path.open("wb") as file:
            for offset in (0, 3 << 20, 6 << 20):
                file.seek(offset)
                file.write(os.urandom(1 << 20))

    cutter = Cutter(tmp_path, fill)
    cutter.cut(2 << 20)
    assert cutter.part.exists()
    _, received = cutter.resume()
    assert received.errors == []
    assert cutter.target.read_bytes() == cutter.source.read_bytes()


def test_two_transfers_do_not_write_the_same_file(cutter: Cutter) -> None:
    first = Unpacker(open_place(os.fsencode(cutter.target)), digests=["crc32"])
    first.feed(START + Entry("file").encode())
    _, received = Transfer(cutter.source, cutter.target).run()
    assert received.errors == [(b"", "another transfer is writing this file")]
    first.feed(EMPTY)
    first.close()
    assert cutter.target.read_bytes() == b""


def test_a_tree_that_was_cut_is_gone_on_with_and_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number in range(40):
        (tmp_path / "in" / "sub" / f"{number:02}").write_bytes(os.urandom(100_000))
    Transfer(tmp_path / "in", tmp_path / "out").run(cut_at=3_000_000)
    sent, received = Transfer(tmp_path / "in", tmp_path / "out", resume=True).run()
    assert received.errors == []
    assert described(tmp_path / "out") == described(tmp_path / "in")
    sent, received = Transfer(tmp_path / "in", tmp_path / "out", resume=True).run()
    assert (sent.kept, sent.size) == (40, 0)


def test_what_cannot_be_read_or_is_special_is_told_and_the_rest_arrives(tmp_path: Path) -> None:
    tree = tmp_path / "in"
    tree.mkdir()
    (tree / "file").write_bytes(b"x")
    os.mkfifo(tree / "fifo")
    deep = tree
    for _ in range(DEPTH_MAX + 3):
        deep = deep / "d"
        deep.mkdir()
    sent, received = Transfer(tree, tmp_path / "out").run()
    assert [(path, reason) for path, reason in received.notes] == [(b"fifo", "a FIFO: left out")]
    assert [reason for _, reason in received.skipped] == [
        f"more than {DEPTH_MAX} directories within one another: left out"
    ]
    assert sent.errors == received.skipped
    assert (tmp_path / "out" / "file").read_bytes() == b"x"


def test_what_stands_in_the_way_is_told_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "fifo"):
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "out" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "out" / "fifo")
    _, received = Transfer(tmp_path / "in", tmp_path / "out").run()
    assert sorted(path for path, _ in received.errors) == [b"a", b"fifo"]
    assert (tmp_path / "out" / "b").read_bytes() == b"x"
    assert stat.S_ISFIFO((tmp_path / "out" / "fifo").lstat().st_mode)


def test_long_names_get_a_temporary_name_that_fits(tmp_path: Path) -> None:
    name = "n" * 255
    (tmp_path / "in").write_bytes(b"x")
    Transfer(tmp_path / "in", tmp_path / name).run()
    assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("path", [b"/dev/null", b"/", b"/nonexistent/x", b"/etc/nonexistent/", b"/x\0"])
def test_a_place_that_cannot_be_written_is_refused_by_its_name(path: bytes) -> None:
    with pytest.raises(TreeError) as caught:
        open_place(path)
    assert os.fsdecode(path).rstrip("/\0")[:3] in str(caught.value)


def test_a_place_in_a_directory_and_behind_a_link_is_where_a_user_means(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with open_place(os.fsencode(tmp_path / "link"), b"name") as place:
        assert place.path == os.fsencode(tmp_path / "real" / "name")
    with open_place(os.fsencode(tmp_path / "new"), b"name") as place:
        assert place.path == os.fsencode(tmp_path / "new")
