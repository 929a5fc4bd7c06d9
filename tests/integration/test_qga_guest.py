"""va-guest as QEMU's guest agent: alone, and beside the real one with the same bytes."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from .qgalab import DEADLINE, lines, run_qemu_ga, run_va_guest, talk

PING = b'{"execute":"guest-ping"}'
SYNC = b'{"execute":"guest-sync","arguments":{"id":%d}}'
DELIMITED = b'{"execute":"guest-sync-delimited","arguments":{"id":%d}}'

#: Byte sequences on which both agents are to say the same.
SAME = [
    PING,
    PING + PING + b"\n\n" + PING,
    b"\xff" + PING,
    b"\xff\xff" + DELIMITED % 7,
    PING[:10] + b"\xff" + PING,
    b'{"execute":"guest-p\xff' + PING,
    DELIMITED % -1 + PING,
    b'{"execute":"guest-sync-delimited"}' + PING,
    b'{"execute":"guest-sync-delimited","arguments":{"id":"12"}}',
    SYNC % 12,
    SYNC % -(2**63),
    SYNC % 2**63,
    SYNC % 2**64,
    b'{"execute":"guest-sync","arguments":{"id":1.0}}',
    b'{"execute":"guest-sync","arguments":{"id":true}}',
    b'{"execute":"guest-sync"}',
    b'{"execute":"guest-sync","arguments":{"id":1,"x":2}}',
    b'{"execute":"guest-ping","arguments":{"a":1}}',
    b"{'execute':'guest-ping','id':{'a':[1,null,1.5]}}",
    b'{"id":18446744073709551615,"execute":"guest-ping"}',
    b'{"execute":"nope","id":7}',
    b'{"execute":"\\ud83d\\ude00\xc3\xa9\\"\\n"}',
    b'{"execute":3,"id":1}',
    b'{"execute":null}',
    b'{"execute":""}',
    b'{"execute":"guest-ping","arguments":null}',
    b'{"execute":"guest-ping","foo":3}',
    b'{"exec-oob":"guest-ping"}',
    b'{} [] 42 null "x" 1.5e3\n',
    b"garbage\n" + PING,
    b"GARBAGE x y\n" + PING,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + PING,
    b"\x00\x01\x02\x7f\x80\xfe" + PING,
    b'{"execute":"guest-ping"}}]}' + PING,
    b"{]" + PING + b"[{]}" + b"{[}]" + b'{"a"]' + b'{"a":1]',
    b'{"a" 2}{1:2}{"a":}{"a":1,}[1,][1 2][,]{"a":1,"a":1}',
    b"01\n-\n1.e\n12a\n0e5\n--1\n1.5.5\n",
    b'{"execute":"gu\x01est"}' + PING,
    b'"abc\n"\\\n' + PING,
    b'["\xc3("]["\xed\xa0\x80"]["\\q"]["\\ud83d"]["\\u12"]["\\uffff"]',
    b"[trueish][TRUE]" + PING,
    b'{"execute":"guest-get-time","arguments":{"x":1}}',
    b'{"execute":"guest-file-open"}{"execute":"guest-file-open","arguments":{"path":3}}',
]


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(10 * DEADLINE):
        yield


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Path]:
    async with run_va_guest(tmp_path) as path:
        yield path


async def test_the_same_bytes_get_the_same_answers_as_from_qemu_ga(tmp_path: Path, agent: Path) -> None:
    async with run_qemu_ga(tmp_path) as real:
        for number, data in enumerate(SAME):
            # A sync at the end tells when all is answered, whatever state the bytes have left behind.
            end = b"\n\xff\n" + SYNC % (1000 + number)
            last = b'{"return": %d}\n' % (1000 + number)
            theirs = lines(await talk(real, data + end, last=last))
            ours = lines(await talk(agent, data + end, last=last))
            assert ours == theirs, data


async def test_random_garbage_gets_the_same_answers_as_from_qemu_ga(tmp_path: Path, agent: Path) -> None:
    seed = 5
    dice = random.Random(seed)
    parts = [
        PING,
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"'",
        b"\\",
        b"\n",
        b"\xff",
        b"\x01",
        b" ",
        b"1.",
        b"-0",
    ]
    parts += [b"execute", b'"a":1', b"e5", b"\\u00", b"\xc3\xa9", b"A", b"true"]
    async with run_qemu_ga(tmp_path) as real:
        for number in range(200):
            data = b"".join(dice.choices(parts, k=12)) + b"\n\xff\n" + SYNC % number
            last = b'{"return": %d}\n' % number
            theirs = lines(await talk(real, data, last=last))
            ours = lines(await talk(agent, data, last=last))
            assert ours == theirs, (seed, number, data)


async def test_while_frozen_only_safe_commands_are_answered(tmp_path: Path) -> None:
    """By the real one: the words that ours repeats; see tests/unit/test_qga_dispatch.py."""
    async with run_qemu_ga(tmp_path, frozen=True) as real:
        answer = lines(await talk(real, PING + b'{"execute":"guest-get-time"}', last=b"frozen"))
    assert answer[0] == {"return": {}}
    assert answer[1]["error"] == {
        "class": "CommandNotFound",
        "desc": "Command guest-get-time has been disabled: the agent is in frozen state",
    }


async def test_info_names_the_schema_and_the_agent_and_the_same_commands(tmp_path: Path, agent: Path) -> None:
    ask = b'{"execute":"guest-info"}\n'
    ours = json.loads(await talk(agent, ask, last=b"\n"))["return"]
    async with run_qemu_ga(tmp_path) as real:
        theirs = json.loads(await talk(real, ask, last=b"\n"))["return"]
    assert ours["agent"].startswith("va-guest ")
    assert [part.isdigit() for part in ours["version"].split(".")] == [True] * 3
    of_theirs = {c["name"]: c for c in theirs["supported_commands"]}
    for entry in ours["supported_commands"]:
        assert set(entry) == {"name", "enabled", "success-response"}
        if entry["name"] in of_theirs:
            assert entry == of_theirs[entry["name"]]


async def test_clients_take_turns_and_none_is_refused(agent: Path) -> None:
    async with await trio.open_unix_socket(str(agent)) as first:
        await first.send_all(PING)
        assert await first.receive_some() == b'{"return": {}}\n'
        async with await trio.open_unix_socket(str(agent)) as second:
            await second.send_all(PING)
            await first.send_all(SYNC % 1)
            assert await first.receive_some() == b'{"return": 1}\n'
            await first.aclose()
            assert await second.receive_some() == b'{"return": {}}\n'
    for number in range(20):
        assert await talk(agent, SYNC % number, last=b"\n") == b'{"return": %d}\n' % number


async def test_what_a_client_left_unfinished_is_not_found_by_the_next(agent: Path) -> None:
    await talk(agent, b'{"execute": "gu')
    assert await talk(agent, PING, last=b"\n") == b'{"return": {}}\n'


async def test_answers_come_in_order_and_a_client_that_half_closes_gets_all(agent: Path) -> None:
    async with await trio.open_unix_socket(str(agent)) as stream:
        await stream.send_all(b"".join(SYNC % n for n in range(500)))
        await stream.send_eof()
        answer = b"".join([part async for part in stream])
    assert [line["return"] for line in lines(answer)] == list(range(500))


async def test_a_block_list_disables_as_qemu_gas_does(tmp_path: Path) -> None:
    async with run_va_guest(tmp_path, "--block-rpcs", "guest-sync") as path:
        answers = lines(
            await talk(path, SYNC % 1 + b'{"execute":"guest-info"}\n', last=b"supported_commands")
        )
    assert answers[0]["error"] == {
        "class": "CommandNotFound",
        "desc": "Command guest-sync has been disabled: the command is not allowed",
    }
    listed = {c["name"]: c["enabled"] for c in answers[1]["return"]["supported_commands"]}
    assert not listed["guest-sync"]
    assert listed["guest-ping"]


async def test_a_slow_client_is_not_read_further_than_it_reads(agent: Path) -> None:
    """Each stray byte costs an answer: who reads none gets no further, and the agent does not grow."""
    async with await trio.open_unix_socket(str(agent)) as stream:
        with trio.move_on_after(2) as patience:
            while True:
                await stream.send_all(b"}" * 65536)
        assert patience.cancelled_caught
    assert await talk(agent, PING, last=b"return") == b'{"return": {}}\n'
