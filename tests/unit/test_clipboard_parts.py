"""Names of types, contents and bundles of them: what is let through, and what a hostile end can do."""

from __future__ import annotations

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from virtagent_protocol.clipboard.bundle import (
    LINE_MAX,
    BundleReader,
    Elsewhere,
    LineReader,
    failure,
    header,
    parse_line,
    pieces,
)
from virtagent_protocol.clipboard.carry import Notices, until_done
from virtagent_protocol.clipboard.contents import Allowance, Blob, Contents, TooLarge
from virtagent_protocol.clipboard.mime import (
    NAME_MAX,
    OFFERED_MAX,
    TEXT_NAMES,
    TYPES_MAX,
    is_name,
    is_pattern,
    plain_name,
    wanted,
)
from virtagent_protocol.clipboard.wayland import best
from virtagent_protocol.errors import FailureKind, Forbidden, LinkBroken, RemoteProtocolError, VirtagentError


def make(**types: bytes) -> Contents:
    return Contents({name.replace("_", "/"): Blob.of(data) for name, data in types.items()})


def read(data: bytes, limit: int = 1000, known: Contents | None = None, step: int = 1 << 20) -> Contents:
    reader = BundleReader(limit, known)
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
    return reader.finish()


# --- Names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_all_names_of_text_are_one(name: str) -> None:
    assert plain_name(name) == "text/plain"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("text/html", "text/html"),
        ("Text/HTML; charset=utf-8", "text/html"),
        ("image/svg+xml", "image/svg+xml"),
        ("TIMESTAMP", None),
        ("application/x; x", "application/x"),
        ("text/html\n", None),
        ("text/\x1b[2J", None),
        ("--type/x", None),
        ("a/" + "b" * NAME_MAX, None),
        ("", None),
    ],
)
def test_a_name_is_a_mime_type_in_one_form_or_goes_nowhere(name: str, plain: str | None) -> None:
    assert plain_name(name) == plain


def test_only_the_one_form_of_a_name_crosses_the_wire() -> None:
    assert is_name("text/html")
    assert not any(is_name(name) for name in ("Text/HTML", "UTF8_STRING", "text/html;x=1", "", None, 7))


def test_patterns_are_types_with_stars() -> None:
    assert all(is_pattern(text) for text in ("image/*", "*/*", "text/html"))
    assert not any(is_pattern(text) for text in ("image", "image/[a-z]", "a/b;c", ""))


def test_what_is_wanted_comes_in_the_order_of_the_patterns_with_one_image_and_the_best_name_of_text() -> None:
    offered = [
        "TARGETS",
        "image/bmp",
        "STRING",
        "image/png",
        "text/html",
        "UTF8_STRING",
        "application/x-secret",
    ]
    assert list(wanted(offered).items()) == [
        ("text/plain", "UTF8_STRING"),
        ("text/html", "text/html"),
        ("image/png", "image/png"),
    ]
    assert wanted(["image/bmp", "image/tiff"]) == {"image/bmp": "image/bmp"}
    assert list(wanted(offered, ["application/*", "image/bmp"])) == ["application/x-secret", "image/bmp"]


def test_however_much_is_offered_so_much_is_taken() -> None:
    offered = [f"a/b{number}" for number in range(OFFERED_MAX)]
    assert len(wanted(offered, ["*/*"])) == TYPES_MAX
    assert wanted([*offered, "text/plain"]) == {}


def test_where_one_type_can_be_offered_it_is_text_then_an_image_then_the_first() -> None:
    assert best(make(image_png=b"", text_html=b"", text_plain=b"")) == "text/plain"
    assert best(make(text_html=b"", image_png=b"")) == "image/png"
    assert best(make(text_html=b"", application_x=b"")) == "text/html"


# --- Contents ------------------------------------------------------------------------------------------


def test_contents_are_alike_if_types_and_bytes_are() -> None:
    assert make(text_plain=b"a", text_html=b"b").alike(make(text_html=b"b", text_plain=b"a"))
    assert not make(text_plain=b"a").alike(make(text_plain=b"b"))
    assert not make(text_plain=b"a").alike(make(text_plain=b"a", text_html=b"a"))


def test_a_blob_is_read_in_pieces_as_it_was_written() -> None:
    blob = Blob()
    data = bytes(range(256)) * 1000
    for at in range(0, len(data), 777):
        blob.append(data[at : at + 777])
    assert (blob.size, b"".join(blob.pieces()), blob.read(255, 2)) == (len(data), data, b"\xff\x00")


def test_an_allowance_ends_with_the_byte_that_is_too_much() -> None:
    allowance = Allowance(10)
    allowance.take(10)
    with pytest.raises(TooLarge, match="more than the 10 bytes"):
        allowance.take(1)


# --- Bundles -------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from(["text/plain", "text/html", "image/png"]), st.binary(max_size=300)),
    st.integers(1, 400),
)
def test_a_bundle_comes_out_as_it_went_in_however_it_is_cut(types: dict[str, bytes], step: int) -> None:
    given = Contents({name: Blob.of(data) for name, data in types.items()})
    assert read(b"".join(pieces(given)), step=step).alike(given)


@given(st.binary(max_size=400))
def test_any_bytes_are_contents_or_one_of_our_errors(data: bytes) -> None:
    for text in (data, header(make(text_plain=b"abc")) + data):
        try:
            read(text)
        except VirtagentError:
            continue


@pytest.mark.parametrize(
    "entries",
    [
        "x",
        [7],
        [{"type": "text/plain", "size": 1}],
        [{"type": "UTF8_STRING", "size": 0, "sha256": "0" * 64}],
        [{"type": "a/b\n", "size": 0, "sha256": "0" * 64}],
        [{"type": "a/b", "size": -1, "sha256": "0" * 64}],
        [{"type": "a/b", "size": True, "sha256": "0" * 64}],
        [{"type": "a/b", "size": 1.0, "sha256": "0" * 64}],
        [{"type": "a/b", "size": 0, "sha256": "x"}],
        [{"type": "a/b", "size": 0, "sha256": "0" * 64}] * 2,
        [{"type": f"a/{number}", "size": 0, "sha256": "0" * 64} for number in range(TYPES_MAX + 1)],
    ],
)
def test_a_header_that_is_not_ours_is_refused(entries: object) -> None:
    with pytest.raises(RemoteProtocolError):
        read(json.dumps({"types": entries}).encode() + b"\n")


def test_sizes_over_the_limit_are_refused_before_a_byte_is_taken() -> None:
    with pytest.raises(TooLarge, match="2000 bytes, more than the 1000"):
        read(header(make(text_plain=b"x" * 1000, text_html=b"x" * 1000)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "cut off"),
        (lambda data: data + b"x", "sent more than it said"),
        (lambda data: data[:-1] + b"X", "arrived otherwise than it was sent"),
        (lambda data: b"[]\n", "no JSON object"),
        (lambda data: b"x" * LINE_MAX, "too long"),
        (lambda data: b"", "cut off"),
    ],
)
def test_what_is_not_whole_is_nothing(change: object, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        read(change(b"".join(pieces(make(text_plain=b"hello")))))  # type: ignore[operator]


def test_contents_that_are_known_need_not_come() -> None:
    known = make(text_plain=b"x" * 900)
    reader = BundleReader(1000, known)
    reader.feed(header(known))
    assert reader.done
    assert reader.finish().alike(known)


def test_an_error_crosses_with_its_kind_and_its_words_bounded() -> None:
    with pytest.raises(Elsewhere, match=r"^no!") as caught:
        read(failure(Forbidden("no!" * 2000)))
    assert caught.value.kind is FailureKind.FORBIDDEN
    assert len(str(caught.value)) <= 1000
    with pytest.raises(RemoteProtocolError):
        parse_line(b'{"error": {"kind": "nonsense", "message": "x"}}')


def test_lines_are_cut_where_they_end_and_no_longer_than_they_may_be() -> None:
    lines = LineReader()
    lines.push(b'{"a": 1}\n{"b"')
    assert (lines.next(), lines.next()) == (b'{"a": 1}', None)
    lines.push(b": 2}\nrest")
    assert (lines.next(), lines.rest()) == (b'{"b": 2}', b"rest")
    lines.push(b"x" * LINE_MAX)
    with pytest.raises(RemoteProtocolError, match="too long"):
        lines.next()


class Played(trio.abc.ReceiveStream):
    """A stream with what is given, and then its end."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._parts.pop(0) if self._parts else b""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_notices_are_numbers_and_nothing_else() -> None:
    told = Notices(Played(b'{"changes": 1}\n{"cha', b'nges": 5}\n'))
    assert [await told.next() for _ in range(3)] == [1, 5, None]
    with pytest.raises(RemoteProtocolError, match="not ours"):
        await Notices(Played(b'{"changes": "1"}\n')).next()


async def test_an_answer_says_that_it_is_done_or_why_not() -> None:
    await until_done(Played(b'{"done"', b": true}\n"))
    with pytest.raises(LinkBroken, match="does not say what became of them"):
        await until_done(Played())
    with pytest.raises(RemoteProtocolError):
        await until_done(Played(b'{"done": false}\n'))
