"""A policy's paths and patterns: nothing outside an allowed tree is ever allowed, however it is written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from virtagent_guest.policy.names import Glob, canonical, qapi_spelling
from virtagent_guest.policy.rules import Policy, Rule
from virtagent_guest.policy.subject import Unjudgeable, program_names, resolve
from virtagent_protocol.values import Value

#: What is in the tree of the tests below; a link's target behind its name.
FILES = ("open/a", "open/sub/b", "open/sub/deep/c", "secret/key", "secret/sub/d")
LINKS = {
    "open/out": "../secret",
    "open/sub/up": "..",
    "open/file": "/ROOT/secret/key",
    "open/in": "sub/b",
    "open/root": "/",
    "open/loop": "loop",
    "open/dangling": "nowhere",
    "open/escapes": "../secret/new",
    "secret/back": "../open",
    "alias": "open",
}
NAMES = sorted({part for path in (*FILES, *LINKS) for part in path.split("/")})


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    with TemporaryDirectory() as directory:
        root = Path(os.path.realpath(directory))
        for file in FILES:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(file)
        for link, target in LINKS.items():
            (root / link).symlink_to(target.replace("/ROOT", str(root)))
        yield root


def pieces() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from([*NAMES, "..", ".", "", "new"]), max_size=9).map("/".join)


def policy_for(root: Path, action: bool = True) -> Policy:
    globs = (Glob(f"{root}/open/**", path=True),)
    rule = Rule("open", action, (Glob("*"),), read=globs, write=globs)
    return Policy(rules=(rule,), default=not action, file="test")


@given(path=pieces(), method=st.sampled_from(["va.getfile", "guest-file-open"]))
@example(path="open/out/key", method="va.getfile")
@example(path="open/sub/../../secret/key", method="va.getfile")
@example(path="open//sub/up/out/../open/a", method="va.getfile")
@example(path="open/escapes", method="guest-file-open")
@example(path="open/a", method="va.getfile")
def test_what_is_allowed_lies_in_the_allowed_tree(tree: Path, path: str, method: str) -> None:
    given_path = f"{tree}/{path}"
    arguments: list[Value] = [given_path]
    if method != "va.getfile":
        arguments = [{"path": given_path, "mode": "w+"}]
    if not policy_for(tree).decide(method, arguments).allowed:
        return
    # What the kernel says is the truth: where an open file is, or would be made.
    try:
        fd = os.open(given_path, os.O_RDONLY)
    except FileNotFoundError:
        real = os.path.realpath(given_path)
    else:
        real = os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
    assert real.startswith(f"{tree}/open/")


@given(path=pieces())
@example(path="alias/a")
@example(path="secret/back/a")
@example(path="open/loop")
def test_what_a_deny_rule_leaves_does_not_lie_in_the_denied_tree(tree: Path, path: str) -> None:
    given_path = f"{tree}/{path}"
    if policy_for(tree, action=False).decide("va.getfile", [given_path]).allowed and os.path.isfile(
        given_path
    ):
        assert not os.path.realpath(given_path).startswith(f"{tree}/open/")


@given(path=pieces())
def test_a_path_resolves_as_the_kernel_resolves_it(tree: Path, path: str) -> None:
    given_path = f"{tree}/{path}"
    try:
        fd = os.open(given_path, os.O_PATH)
    except OSError:
        return
    try:
        assert resolve(given_path) == os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "path", ["etc/passwd", "", "/a\0b", "/" + "x" * 5000, "/\ud800", "/etc/passwd/", "/etc/passwd/x"]
)
def test_what_cannot_be_judged_is_never_allowed_by_a_rule_and_always_denied_by_one(path: str) -> None:
    with pytest.raises(Unjudgeable):
        resolve(path)
    everything = (Glob("/**", path=True),)
    for allow in (True, False):
        rule = Rule("all", allow, (Glob("*"),), read=everything)
        assert not Policy(rules=(rule,), default=not allow, file="test").decide("va.getfile", [path]).allowed


def test_a_link_of_proc_that_leads_elsewhere_than_it_says_cannot_be_judged(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with file.open() as opened:
        path = f"/proc/{os.getpid()}/fd/{opened.fileno()}"
        assert resolve(path) == os.path.realpath(file)
        file.unlink()
        with pytest.raises(Unjudgeable, match="leads elsewhere"):
            resolve(path)


def test_a_program_is_known_by_its_directory_resolved_and_as_what_it_really_is(tmp_path: Path) -> None:
    root = Path(os.path.realpath(tmp_path))
    (root / "bin").mkdir()
    (root / "bin/busybox").touch()
    (root / "bin/ls").symlink_to("busybox")
    (root / "sbin").symlink_to("bin")
    assert program_names(f"{root}/sbin/ls") == (f"{root}/bin/ls", f"{root}/bin/busybox")
    for program in ("ls", "bin/ls", f"{root}/bin/", f"{root}/bin/.."):
        with pytest.raises(Unjudgeable):
            program_names(program)


def as_regex(pattern: str, path: bool) -> str:
    within = "[^/]" if path else "."
    words = {"*": f"{within}*", "?": within}
    tokens = re.findall(r"\*\*+|.", pattern, re.DOTALL)
    return "".join(".*" if len(token) > 1 else words.get(token, re.escape(token)) for token in tokens)


@given(
    pattern=st.text(alphabet="ab/*?[", max_size=8),
    text=st.text(alphabet="ab/[\n", max_size=8),
    path=st.booleans(),
)
def test_a_pattern_matches_what_the_regular_expression_for_it_does(
    pattern: str, text: str, path: bool
) -> None:
    assert Glob(pattern, path).matches(text) == bool(re.fullmatch(as_regex(pattern, path), text, re.DOTALL))


def test_a_pattern_made_to_be_slow_is_not() -> None:
    # A backtracking matcher would not come to an end.
    assert not Glob("**a" * 30 + "b", path=True).matches("a" * 4000)


def test_a_method_has_one_name_in_all_spellings() -> None:
    assert canonical("guest-file-open") == canonical("guest.file_open") == "guest.file_open"
    assert qapi_spelling("guest.file_open") == "guest-file-open"
    assert canonical("va.getfile") == qapi_spelling("va.getfile") == "va.getfile"
    assert canonical("guest-file-*") == "guest.file_*"
