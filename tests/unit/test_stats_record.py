"""What the host believes a guest of its statistics: shapes, bounds, and words that are shown."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import trio

from virtagent_guest.stats.sampler import SECTIONS as GUEST_SECTIONS
from virtagent_guest.stats.sampler import Sampler
from virtagent_host.frontend.statistics import lines
from virtagent_host.frontend.units import duration, percent, size
from virtagent_host.stats.record import checked
from virtagent_host.stats.sections import SECTIONS
from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import RemoteProtocolError


async def _sample() -> Any:
    sampler = Sampler(frozenset(SECTIONS), 5)
    await sampler.begin()
    record = await sampler.sample()
    # As it comes over the wire.
    return xmlrpc.decode_response(xmlrpc.encode_result(record))[0]


@pytest.fixture(scope="module")
def sample() -> Any:
    return trio.run(_sample)


@pytest.fixture
def record(sample: Any) -> Any:
    return json.loads(json.dumps(sample))


def _put(record: Any, path: str, value: object) -> None:
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        record = record[step]
    if value is MISSING:
        del record[last]
    else:
        record[last] = value


MISSING = object()


def test_both_ends_know_the_same_sections() -> None:
    assert SECTIONS == GUEST_SECTIONS


def test_what_the_agent_sends_passes_whole(record: Any) -> None:
    assert checked(record) == record
    assert list(checked(record))[:2] == ["time", "window"]


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("time", MISSING, "is missing"),
        ("time", "now", "'time' of the guest's statistics must be a double"),
        ("window", -1.0, "'window'"),
        ("cpu", [], "'cpu' of the guest's statistics must be a struct, it is array"),
        ("cpu.busy", 1.5, "'cpu.busy'"),
        ("cpu.busy", True, "'cpu.busy'"),
        ("cpu.busy", float("nan"), "'cpu.busy'"),
        ("cpu.busy", MISSING, "'cpu.busy' of the guest's statistics is missing"),
        ("cpu.cpus.0.idle", None, "'cpu.cpus[0].idle'"),
        ("cpu.cpus", [{}] * 1000, "'cpu.cpus' of the guest's statistics must be an array of up to 256"),
        ("memory.total", -1, "'memory.total'"),
        ("memory.total", 2**63, "'memory.total'"),
        ("memory.total", 1.0, "'memory.total'"),
        ("load.avg1", float("inf"), "'load.avg1'"),
        ("uptime", [[[[]]]], "'uptime'"),
        ("filesystems.0.path", "x" * 513, "'filesystems[0].path'"),
        ("filesystems.0.size", MISSING, "'filesystems[0].size'"),
        ("filesystems.0.error", 7, "'filesystems[0].error'"),
        ("network.0.name", "\\x1b" * 200, "'network[0].name'"),
        ("network.0.virtual", 1, "'network[0].virtual'"),
        ("processes.top.0.user", ["root"], "'processes.top[0].user'"),
        ("processes.top.0.cpu", 1e9, "'processes.top[0].cpu'"),
        ("unavailable", {"cpu": "x" * 1001}, "'unavailable.cpu'"),
        ("omitted", {"disks": -1}, "'omitted.disks'"),
        ("skipped", "many", "'skipped'"),
    ],
)
def test_a_hostile_member_is_refused_by_its_name(
    record: Any, path: str, value: object, complaint: str
) -> None:
    _put(record, path, value)
    with pytest.raises(RemoteProtocolError, match=re.escape(complaint)):
        checked(record)


@pytest.mark.parametrize("value", [None, [], "x", 7, {"time": 1.0}])
def test_what_is_no_record_is_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        checked(value)


def test_what_a_newer_agent_tells_besides_is_left_out(record: Any) -> None:
    record.update(gpu={"busy": 1.0})
    record["cpu"]["temperature"] = 300.0
    record["unavailable"]["gpu"] = "none"
    known = checked(record)
    assert "gpu" not in known
    assert "temperature" not in known["cpu"]
    assert "gpu" not in known["unavailable"]


def test_a_file_system_that_does_not_answer_has_an_error_for_its_sizes(record: Any) -> None:
    hangs = {"path": "/mnt", "source": "server:/", "type": "nfs4", "error": "it does not answer"}
    record["filesystems"].append(hangs)
    assert checked(record)["filesystems"][-1] == hangs


def test_a_record_is_told_in_lines_that_name_what_is_missing(record: Any) -> None:
    del record["pressure"]
    record["unavailable"]["pressure"] = "this kernel tells none"
    record["omitted"]["network"] = 12
    record["skipped"] = 3
    record["swap"]["total"] = 0
    record["filesystems"].append({"path": "/mnt", "source": "s:/", "type": "nfs4", "error": "no answer"})
    text = "\n".join(lines(checked(record)))
    assert "pressure     unavailable: this kernel tells none\n" in text
    assert "network      12 more are not told\n" in text
    assert "swap         none\n" in text
    assert "             /mnt: no answer\n" in text
    assert text.endswith("skipped      3 samples before this one")


def test_units_are_short() -> None:
    assert [size(count) for count in (0, 1023, 1024, 1536, 10 * 1024**2, 5 * 1024**6)] == [
        *("0", "1023", "1.0K", "1.5K", "10M", "5120P")
    ]
    assert [percent(share) for share in (0.0, 0.314, 1.0)] == ["0%", "31%", "100%"]
    assert [duration(seconds) for seconds in (59, 3600, 273900)] == ["0 min", "1:00", "3d 4:05"]
