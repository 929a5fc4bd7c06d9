"""What files of extensions say, and which files are none."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtagent_guest.extensions.annotations import PYTHON_MAX, parse_function
from virtagent_guest.extensions.directory import ENTRIES_MAX, Contents, Directory
from virtagent_guest.extensions.extension import Kind, Unusable
from virtagent_guest.extensions.header import parse_header
from virtagent_guest.extensions.table import Extensions
from virtagent_protocol.builtin import add_builtin
from virtagent_protocol.errors import Fault, RemoteProtocolError
from virtagent_protocol.registry import Registry
from virtagent_protocol.signature import (
    EXTENSIONS_MAX,
    PARAMETERS_MAX,
    RETURNS,
    TIMEOUT_MAX,
    Field,
    Signature,
    fault_of,
    parse_signature,
)
from virtagent_protocol.values import Value

HEADER = """\
#!/bin/sh
# SPDX-License-Identifier: MIT
#
# virtagent: Say how full it is.
# param path: string = /a b - any path on it
# param inodes: bool = false
# param deep: object = {"a": [1, "] -- "]} -- more
# param note: str = null
# returns: object - with figures
# timeout: 7
#
# Further help,
# param of another line.

# not this
"""

NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
#: Type → values of it.
VALUES = {
    "string": st.text(),
    "int": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "array": st.lists(JSON, max_size=3),
    "struct": st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    "any": JSON,
}


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    types = [draw(st.sampled_from(sorted(VALUES))) for _ in names]
    required = draw(st.integers(0, len(names)))
    fields = tuple(
        Field(name, type_) if i < required else Field(name, type_, True, draw(st.none() | VALUES[type_]))
        for i, (name, type_) in enumerate(zip(names, types, strict=True))
    )
    timeout = draw(st.integers(1, TIMEOUT_MAX))
    return Signature(f"va.x_{draw(NAMES)}", fields, draw(st.sampled_from(RETURNS)), timeout)


def header(text: str) -> tuple[str, int | None]:
    """Return why a header is none, and its line."""
    with pytest.raises(Unusable) as caught:
        parse_header("va.x_it", text)
    return str(caught.value), caught.value.line


def python(source: str) -> tuple[str, int | None]:
    """Return why a Python file is none, and its line."""
    with pytest.raises(Unusable) as caught:
        parse_function("va.x_it", "it", source.encode())
    return str(caught.value), caught.value.line


# --- The signature, which crosses the wire -----------------------------------------------------------


@given(signatures())
def test_a_signature_is_read_as_it_was_written(signature: Signature) -> None:
    assert parse_signature(str(signature)) == signature
    assert fault_of(signature) == ""


@given(
    st.text() | signatures().map(str).flatmap(lambda line: st.integers(0, len(line)).map(lambda n: line[:n]))
)
def test_any_other_line_is_refused_and_nothing_else_happens(line: str) -> None:
    try:
        signature = parse_signature(line)
    except RemoteProtocolError:
        return
    assert fault_of(signature) == ""


@pytest.mark.parametrize(
    "line",
    [
        "va.x_it()",
        "va.x_it() -> any within 0 s",
        "va.x_it() -> any within 3601 s",
        "va.x_It() -> any within 1 s",
        "va.it() -> any within 1 s",
        "va.x_it(a: base64) -> any within 1 s",
        "va.x_it(a: int, a: int) -> any within 1 s",
        "va.x_it(a: int = 1, b: int) -> any within 1 s",
        'va.x_it(a: int = "1") -> any within 1 s',
        "va.x_it(a: double = NaN) -> any within 1 s",
        f"va.x_it(a: any = {'[' * 1900}) -> any within 1 s",
        f"va.x_it({', '.join(f'{letter}: int' for letter in string.ascii_lowercase)}) -> any within 1 s",
        f'va.x_it(a: string = "{"x" * 2000}") -> any within 1 s',
        "va.x_it() -> any within 1 s\x1b[2J",
        "va.x_it() -> any within 1 s\n",
    ],
)
def test_a_hostile_signature_is_refused(line: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_signature(line)


# --- Executables -------------------------------------------------------------------------------------


def test_a_header_says_all_there_is_to_say() -> None:
    read = parse_header("va.x_df", HEADER)
    assert str(read.signature) == (
        'va.x_df(path: string = "/a b", inodes: boolean = false, deep: struct = {"a": [1, "] -- "]}, '
        "note: string = null) -> struct within 7 s"
    )
    assert read.help == (
        "Say how full it is.\n\npath: any path on it\ndeep: more\nreturns: with figures\n\n"
        "Further help,\nparam of another line."
    )
    assert not read.plain


def test_text_is_a_string_that_is_not_parsed() -> None:
    read = parse_header("va.x_it", "// virtagent: It.\n// returns: text")
    assert (read.plain, read.signature.returns) == (True, "string")


@pytest.mark.parametrize(
    ("lines", "why", "line"),
    [
        ("#!/bin/sh\necho", "no comment at its top", None),
        ("#!/bin/sh\n\n# virtagent: Too late.", "no comment at its top", None),
        ("# virtagent:", "followed by what it does", 1),
        ("# virtagent: It.\n# parm path: string", "'parm' is none of", 2),
        ("# virtagent: It.\n# param Path: string", "write 'param NAME: TYPE'", 2),
        ("# virtagent: It.\n# param path: strnig", "no type 'strnig'", 2),
        ("# virtagent: It.\n# param path: string, really", "after the type comes", 2),
        ("# virtagent: It.\n# param n: int = many", "must be JSON, not 'many'", 2),
        ("# virtagent: It.\n# param n: int = true", "default of 'n' is no int", 2),
        ('# virtagent: It.\n# param s: string = "x', "must be JSON", 2),
        ("# virtagent: It.\n# param timeout: int", "must have another name", 2),
        ("# virtagent: It.\n# param a: int = 1\n# param b: int", "comes behind one that has", 3),
        ("# virtagent: It.\n# param a: int\n# param a: int", "is there twice", 3),
        ("# virtagent: It.\n# returns: base64", "no type 'base64'", 2),
        ("# virtagent: It.\n# returns: int\n# returns: int", "'returns' is there twice", 3),
        ("# virtagent: It.\n# timeout: 1e3", "1 to 3600 whole seconds", 2),
        ("# virtagent: It.\n# timeout: 3601", "1 to 3600 whole seconds", 2),
        ("# virtagent: It.\n# param s: string = " + "x" * 2000, "more than 2000 characters", 1),
    ],
)
def test_what_is_wrong_with_a_header_is_told_with_its_line(lines: str, why: str, line: int | None) -> None:
    text, at = header(lines)
    assert why in text
    assert at == line


def test_parameters_are_bounded() -> None:
    names = [f"p{number}" for number in range(PARAMETERS_MAX + 1)]
    text, _ = header("# virtagent: It.\n" + "\n".join(f"# param {name}: int" for name in names))
    assert "17 parameters, 16 are allowed" in text


WORDS = st.sampled_from(
    [
        *("#", "//", " ", "\n", "virtagent:", "param", "returns:", "timeout:", "path", ": ", "string", "int"),
        *("=", "-", "null", '"', "[", "{", "9", "text", "\u2014", "\0", "\x85", "x"),
    ]
)


@given(
    st.sampled_from(["", "# virtagent: It.\n", "# virtagent: It.\n# param a: "]),
    st.lists(WORDS).map("".join) | st.text(),
)
def test_any_text_is_a_header_or_unusable(begin: str, text: str) -> None:
    try:
        read = parse_header("va.x_it", begin + text)
    except Unusable:
        return
    # What is offered can be read by the host.
    assert parse_signature(str(read.signature)) == read.signature


# --- Python files ------------------------------------------------------------------------------------


def test_annotations_are_the_signature_and_the_docstring_is_the_help() -> None:
    source = '''
# timeout: 5
def it(a: str, b: "int" = -1, *, c: list[str] | None = None, d: Optional[typing.Dict[str, int]] = None, e=2.5,
       f: int | str = 1, g: float = 3) -> dict[str, int]:
    """Do it.

    In a way.
    """
'''.lstrip()
    signature, words = parse_function("va.x_it", "it", source.encode())
    assert str(signature) == (
        "va.x_it(a: string, b: int = -1, c: array = null, d: struct = null, e: any = 2.5, f: any = 1, "
        "g: double = 3.0) -> struct within 5 s"
    )
    assert words == "Do it.\n\nIn a way."


@pytest.mark.parametrize(("annotation", "type_"), [("-> None", "nil"), ("", "any"), ("-> int | None", "any")])
def test_a_result_may_be_nothing(annotation: str, type_: str) -> None:
    source = f"def it() {annotation}:\n '''It.'''"
    assert parse_function("va.x_it", "it", source.encode())[0].returns == type_


@pytest.mark.parametrize(
    ("source", "why", "line"),
    [
        ("def other():\n pass", "no function of the file's name: def it(...)", None),
        ("\ndef it(:", "this is not Python", 2),
        ("x = '\0'", "this is not Python", None),
        ("(" * 20000, "this is not Python", None),
        ("async def it():\n 'It.'", "plain function", 1),
        ("\n\ndef it(): pass", "no docstring", 3),
        ("def it(*a):\n 'It.'", "given by name", 1),
        ("def it(a, /):\n 'It.'", "given by name", 1),
        ("def it(a: bytes):\n 'It.'", "annotation of 'a'", 1),
        ("def it(a: 'in t'):\n 'It.'", "annotation of 'a'", 1),
        ("def it() -> set:\n 'It.'", "annotation of the result", 1),
        ("def it(\n  a: int = f()):\n 'It.'", "the default of 'a' must be a constant", 2),
        ("def it(a: Any = {1}):\n 'It.'", "the default of 'a' must be a constant", 1),
        ("def it(a: Any = (1, 2)):\n 'It.'", "the default of 'a' must be a constant", 1),
        ("def it(a: int = None):\n 'It.'", "annotate it with '| None'", 1),
        ("def it(A: int):\n 'It.'", "small letters", 1),
        ("def it(session: int):\n 'It.'", "must have another name", 1),
        ("# timeout: x\ndef it():\n 'It.'", "1 to 3600 whole seconds", 1),
    ],
)
def test_what_is_wrong_with_a_python_file_is_told(source: str, why: str, line: int | None) -> None:
    text, at = python(source)
    assert why in text
    if line is not None:
        assert at == line


def test_a_default_that_json_would_change_is_refused() -> None:
    assert "constant that JSON carries" in python("def it(a: dict = {1: 2}):\n 'It.'")[0]


# --- The directory -----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "methods.d"
    path.mkdir(mode=0o755)
    return path


def write(path: Path, text: str = "# virtagent: It.\n", mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def problems(contents: Contents) -> str:
    return "\n".join(map(str, contents.problems))


def test_executables_and_python_files_are_extensions_and_all_else_is_passed_over(place: Path) -> None:
    write(place / "df.sh")
    write(place / "it.py", "def it():\n 'It.'\n", 0o644)
    for name in (".hidden", "backup~"):
        write(place / name)
    write(place / "README", "words", 0o644)
    (place / "__pycache__").mkdir()
    contents = Directory(str(place)).look()
    assert {name: found.kind for name, found in contents.extensions.items()} == {
        "va.x_df": Kind.EXECUTABLE,
        "va.x_it": Kind.PYTHON,
    }
    assert contents.problems == ()


@pytest.mark.parametrize("path", ["", "/nonexistent/methods.d"])
def test_no_directory_is_no_extensions(path: str) -> None:
    assert Directory(path).look() == Contents()


def test_a_file_with_an_error_is_told_with_its_line_and_harms_no_other(place: Path) -> None:
    write(place / "good")
    write(place / "bad", "#!/bin/sh\n# virtagent: It.\n# parm a: int\n")
    write(place / "Upper")
    write(place / "forgot", mode=0o644)
    write(place / "wide", mode=0o775)
    write(place / "good.sh")
    (place / "link").symlink_to("good")
    write(place / "big.py", "#" * (PYTHON_MAX + 1), 0o644)
    os.mkfifo(place / "pipe")
    contents = Directory(str(place)).look()
    assert list(contents.extensions) == ["va.x_good"]
    told = problems(contents)
    assert f"{place}/bad:3: 'parm' is none of" in told
    assert f"{place}/Upper: its name" in told
    assert f"{place}/forgot: it is not executable: chmod +x" in told
    assert f"{place}/wide: others may write to it (mode 0775): chmod go-w" in told
    assert f"{place}/good.sh: va.x_good is {place}/good already" in told
    assert f"{place}/link: it is a symbolic link" in told
    assert f"{place}/big.py: it has more than {PYTHON_MAX} bytes" in told
    assert f"{place}/pipe: it is no file" in told
    assert len(contents.problems) == 8


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_or_a_directory_of_somebody_else_is_not_trusted(place: Path) -> None:
    directory = Directory(str(place))
    os.chown(write(place / "theirs"), 65534, -1)
    assert f"{place}/theirs: it belongs to user id 65534" in problems(directory.look())
    os.chown(place, 65534, -1)
    write(place / "ours")
    contents = directory.look()
    assert contents.extensions == {}
    assert problems(contents).startswith(f"{place}: it belongs to user id 65534")


def test_a_directory_that_others_may_replace_is_not_trusted(place: Path) -> None:
    write(place / "it")
    directory = Directory(str(place))
    assert directory.look().extensions
    place.parent.chmod(0o777)
    contents = directory.look()
    assert contents.extensions == {}
    assert f"{place.parent}: others may write to it (mode 0777): chmod go-w; until then" in problems(contents)
    place.parent.chmod(0o1777)
    assert directory.look().extensions


def test_a_change_is_seen_and_what_has_not_changed_is_not_read_again(place: Path) -> None:
    directory = Directory(str(place))
    file = write(place / "it")
    kept = write(place / "kept")
    first = directory.look()
    assert directory.look() is first
    file.write_text("# virtagent: Another.\n")
    second = directory.look()
    assert second.extensions["va.x_it"].help == "Another."
    assert second.extensions["va.x_kept"] is first.extensions["va.x_kept"]
    file.unlink()
    kept.chmod(0o644)
    assert directory.look().extensions == {}


def test_extensions_and_files_are_bounded(place: Path) -> None:
    for number in range(EXTENSIONS_MAX + 2):
        write(place / f"x{number:03}")
    contents = Directory(str(place)).look()
    assert len(contents.extensions) == EXTENSIONS_MAX
    assert problems(contents).count(f"there are {EXTENSIONS_MAX} extensions already") == 2
    for number in range(EXTENSIONS_MAX + 2, ENTRIES_MAX + 1):
        write(place / f"y{number:03}", mode=0o644)
    assert f"only {ENTRIES_MAX} of its files are looked at" in problems(Directory(str(place)).look())


def test_a_default_in_a_file_is_the_one_that_the_host_reads(place: Path) -> None:
    value = {"quote": '"', "line": "\n", "list": [None, True, -1.5], "word": "ü\u202e"}
    write(place / "it", f"# virtagent: It.\n# param a: any = {json.dumps(value)} - words\n")
    (found,) = Directory(str(place)).look().extensions.values()
    line = found.text.partition("\n")[0]
    assert parse_signature(line).fields[0].default == value


# --- The registry ------------------------------------------------------------------------------------


def test_a_registry_has_what_is_in_the_directory_now(place: Path) -> None:
    extensions = Extensions()
    registry = Registry()
    registry.offer(extensions.methods)
    add_builtin(registry, "va-guest 1")
    file = write(
        place / "it", "# virtagent: It.\n# param a: int\n# param b: string = null\n# returns: text\n"
    )
    assert "va.x_it" not in registry.names()
    extensions.open(str(place))
    assert "va.x_it" in registry.names()
    method = registry.get("va.x_it")
    assert method.signatures() == [["string", "int"], ["string", "int", "string"]]
    assert method.help == "va.x_it(a: int, b: string = null) -> string within 30 s\n\nIt."
    right: list[list[Value]] = [[1], [1, None], [1, "b"]]
    for params in right:
        method.check(params)
    wrong: list[list[Value]] = [[], [None], [1, 2], [1, "b", 3], [b"1"]]
    for params in wrong:
        with pytest.raises(Fault, match=r"usage: va.x_it\(a: int, \[b: string\]\)"):
            method.check(params)
    file.unlink()
    with pytest.raises(Fault, match=r"method 'va\.x_it' not found"):
        registry.get("va.x_it")
    assert [found.name for found in registry if found.name.startswith("va.x_")] == []


def test_problems_are_told_once_and_again_when_all_is_read_again(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extensions = Extensions()
    write(place / "Bad")
    with caplog.at_level("INFO"):
        extensions.open(str(place))
        write(place / "good")
        assert list(extensions.methods()) == ["va.x_good"]
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        extensions.reload()
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2
