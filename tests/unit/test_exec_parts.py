"""The parts of exec that need no process: the ring, the request as it comes off the wire, an output."""

from __future__ import annotations

import os
import resource

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from virtagent_guest.jobs.process import Output
from virtagent_guest.jobs.request import TerminalSize, parse_request
from virtagent_guest.jobs.ring import Ring
from virtagent_guest.policy.subject import Unjudgeable, subject_of
from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.values import Struct


@given(st.lists(st.binary(max_size=50)), st.integers(1, 40), st.integers(0, 300), st.integers(0, 60))
def test_a_ring_holds_the_end_of_what_was_written(
    parts: list[bytes], size: int, offset: int, count: int
) -> None:
    ring = Ring(size)
    for part in parts:
        ring.append(part)
    whole = b"".join(parts)
    assert ring.end == len(whole)
    assert len(ring) == min(size, len(whole))
    first = ring.first(offset)
    assert first == max(offset, len(whole) - size, 0)
    assert ring.read(offset, count) == whole[first : first + count]


def test_all_that_can_be_asked_for_is_read() -> None:
    request = parse_request(
        {
            "argv": ["cat", b"\xff"],
            "env": {"A": "ä", "B": b"\xfe"},
            "clear_env": True,
            "cwd": "/tmp",
            "user": "nobody",
            "pty": {"rows": 24, "cols": 80, "term": "xterm"},
            "deadline": 5,
            "limits": {"cpu": 1, "files": 64},
            "io": 1,
            "status": 3,
        }
    )
    assert request.argv == (b"cat", b"\xff")
    assert request.env == {b"A": "ä".encode(), b"B": b"\xfe", b"TERM": b"xterm"}
    assert (request.clear_env, request.cwd, request.user) == (True, b"/tmp", "nobody")
    assert request.terminal == TerminalSize(24, 80)
    assert request.deadline == 5.0
    assert request.limits == {resource.RLIMIT_CPU: 1, resource.RLIMIT_NOFILE: 64}
    assert (request.io, request.stderr, request.status) == (1, None, 3)
    assert request.merged
    assert not request.detached


def test_a_shell_gets_one_string() -> None:
    assert parse_request({"argv": ["a | b"], "shell": True}).argv == (b"/bin/sh", b"-c", b"a | b")


_PTY: Struct = {"rows": 24, "cols": 80}


@pytest.mark.parametrize(
    ("struct", "complaint"),
    [
        ({}, "'argv' must be array, it is missing"),
        ({"argv": []}, "must begin with a program"),
        ({"argv": [""]}, "must begin with a program"),
        ({"argv": ["a", 1]}, r"argv\[1\] must be string or base64, not int"),
        ({"argv": ["a\0"]}, "has a NUL"),
        ({"argv": ["a", "b"], "shell": True}, "must be one string"),
        ({"argv": ["a"], "arg": 1}, "no member 'arg'"),
        ({"argv": ["a"], "env": {"A=B": ""}}, "no name of an environment variable"),
        ({"argv": ["a"], "env": {"A": 1}}, "env.A must be string"),
        ({"argv": ["a"], "cwd": "x"}, "absolute path"),
        ({"argv": ["a"], "user": 0}, "'user' must be string"),
        ({"argv": ["a"], "deadline": 0}, "deadline must be over 0"),
        ({"argv": ["a"], "deadline": True}, "deadline must be a number"),
        ({"argv": ["a"], "limits": {"x": 1}}, "no limit 'x'"),
        ({"argv": ["a"], "limits": {"cpu": -1}}, "must not be negative"),
        ({"argv": ["a"], "pty": _PTY}, "has no terminal"),
        ({"argv": ["a"], "pty": {"rows": 0, "cols": 80}, "io": 1, "status": 3}, "rows of a terminal"),
        ({"argv": ["a"], "stderr": 1}, "go with io"),
        ({"argv": ["a"], "io": 1}, "io goes with status"),
        ({"argv": ["a"], "io": 1, "status": 3, "stderr": 5, "merge": True}, "no stream of its own"),
        ({"argv": ["a"] * 16385}, "more than 16384"),
    ],
)
def test_what_makes_no_sense_is_named(struct: Struct, complaint: str) -> None:
    with pytest.raises(Fault, match=complaint) as caught:
        parse_request(struct)
    assert caught.value.code is FaultCode.INVALID_PARAMS


def test_a_policy_sees_program_variables_and_user() -> None:
    subject = subject_of("va.exec", [{"argv": ["/bin/ls", "-l"], "env": {"LD_PRELOAD": "x"}, "user": "u"}])
    assert subject is not None
    assert (subject.argv, subject.variables, subject.user) == (("/bin/ls", "-l"), ("LD_PRELOAD",), "u")
    subject = subject_of("va.exec", [{"argv": ["rm x"], "shell": True}])
    assert subject is not None
    assert subject.argv == ("/bin/sh", "-c", "rm x")


@pytest.mark.parametrize(
    "struct",
    [{}, {"argv": []}, {"argv": ["/x"], "shell": 1}, {"argv": ["/x"], "env": []}],
)
def test_what_a_policy_cannot_judge_is_not_taken_for_harmless(struct: Struct) -> None:
    with pytest.raises(Unjudgeable):
        subject_of("va.exec", [struct])


async def test_an_output_that_is_closed_while_it_is_read_has_ended() -> None:
    # Tasks of one turn run in any order: so often that the one that closes comes between.
    for _ in range(50):
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.write(write_end, b"x")
        output = Output(read_end)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(output.read)
                await trio.lowlevel.checkpoint()
                output.close()
            assert await output.read() == b""
        finally:
            output.close()
            os.close(write_end)
