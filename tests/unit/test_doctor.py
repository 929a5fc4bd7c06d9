"""What the doctor makes of facts, where a real QEMU or guest would be hard to bring into that state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from virtagent_host.doctor.diagnosis import CHECKS, Finding, diagnose
from virtagent_host.doctor.symptoms import Chardev, Facts, Port, Qemu
from virtagent_protocol.errors import CallTimeout, FailureKind

SOCKET = Path("/run/vm/channel")
PORT = Port("p1", "org.qemu.virtagent", "virtagent", "/machine/peripheral/s/virtio-backend")
CHARDEV = Chardev("virtagent", f"unix:{SOCKET},server=on", True)
QEMU = Qemu("7.2.22", "running", True, True, {"virtagent": CHARDEV}, (PORT,), frozenset({"DRIVER_OK"}))
STATUS: dict[str, Any] = {
    "state": "ready",
    "reason": "va-guest said hello",
    "agent": "va-guest 0.1.0",
    "session": "0-1",
    "protocol": "1.0",
    "figures": {"refusal": None, "sessions": 1, "drops": {}},
}
#: All is well.
FACTS = Facts(
    Path("/run/virtagent/demo.qmp"),
    "demo",
    status=STATUS,
    capabilities={"methods": ["va.ping", "va.getfile"]},
    service_pid=7,
    qemu=QEMU,
    channel=SOCKET,
)
CLOSED = {"virtagent": replace(CHARDEV, open=False)}


def failure(facts: Facts) -> tuple[str, Finding]:
    """Return the one check that does not hold."""
    failed = [(check, finding) for check, finding in diagnose(facts) if finding.holds is False]
    assert len(failed) == 1, failed
    return failed[0]


def with_qemu(**changes: Any) -> Facts:
    return replace(FACTS, qemu=replace(QEMU, **changes))


def with_status(**changes: Any) -> Facts:
    return replace(FACTS, status=STATUS | changes)


def test_everything_holds_and_nothing_is_to_be_done() -> None:
    findings = diagnose(FACTS)
    assert [check for check, _ in findings] == list(CHECKS)
    assert all(finding.holds and not finding.remedy and finding.kind is None for _, finding in findings)
    frozen = diagnose(with_status(state="frozen"))
    assert all(finding.holds for _, finding in frozen)


def test_a_qemu_that_cannot_tell_about_the_driver_leaves_both_causes_open() -> None:
    facts = with_qemu(driver=None, chardevs=CLOSED)
    assert dict(diagnose(facts))["driver"].holds is None
    check, finding = failure(facts)
    assert check == "opened"
    assert "or no virtio_console driver is there" in finding.text


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ((), "has not booted so far"),
        (("ACKNOWLEDGE",), "no virtio_console driver drives it"),
        (("ACKNOWLEDGE", "DRIVER", "FAILED"), "has given the controller up"),
    ],
)
def test_the_devices_status_tells_how_far_the_guest_came(bits: tuple[str, ...], text: str) -> None:
    check, finding = failure(with_qemu(driver=frozenset(bits), chardevs=CLOSED))
    assert (check, text in finding.text) == ("driver", True), finding


@pytest.mark.parametrize(
    ("state", "kind", "remedy"),
    [
        ("paused", FailureKind.NOT_READY, "va-host qmp demo cont"),
        ("suspended", FailureKind.NOT_READY, "va-host qmp demo system_wakeup"),
        ("inmigrate", FailureKind.NOT_READY, "va-host qmp demo query-migrate"),
        ("guest-panicked", FailureKind.BROKEN, "va-host qmp demo system_reset"),
    ],
)
def test_each_way_to_be_stopped_has_its_remedy(state: str, kind: FailureKind, remedy: str) -> None:
    check, finding = failure(with_qemu(run_state=state))
    assert (check, finding.kind, finding.remedy) == ("running", kind, remedy)


def test_of_two_ports_the_one_that_is_closed_is_judged() -> None:
    ports = tuple(Port(f"p-{end}", f"{PORT.name}-{end}", end, PORT.device) for end in ("client", "server"))
    chardevs = {
        "client": replace(CHARDEV, label="client"),
        "server": replace(CHARDEV, label="server", open=False),
    }
    check, finding = failure(with_qemu(ports=ports, chardevs=chardevs))
    assert check == "opened"
    assert "/dev/virtio-ports/org.qemu.virtagent-server" in finding.remedy


def test_an_unanswered_heartbeat_is_the_agents_fault() -> None:
    check, finding = failure(with_status(state="greeting", reason="no answer to a heartbeat within 10 s"))
    assert (check, finding.kind) == ("agent", FailureKind.NOT_READY)
    assert "no answer to a heartbeat" in finding.text


def test_a_service_that_may_not_connect_is_forbidden_whoever_asks_the_doctor() -> None:
    away = {"virtagent": replace(CHARDEV, filename=f"disconnected:{CHARDEV.filename}")}
    reason = "cannot connect to the channel /run/vm/channel: Permission denied"
    facts = replace(with_qemu(chardevs=away), status=STATUS | {"state": "no-port", "reason": reason})
    check, finding = failure(facts)
    assert (check, finding.kind) == ("chardev", FailureKind.FORBIDDEN)
    assert reason in finding.text


def test_a_service_that_does_not_answer_is_broken_in_time() -> None:
    check, finding = failure(replace(FACTS, unreachable=CallTimeout("va-host of 'demo' does not answer")))
    assert (check, finding.kind) == ("monitor", FailureKind.TIMED_OUT)


def with_policy(*forbidden: str) -> Facts:
    methods = ["system.multicall", "va.capabilities", "va.getfile", "va.ping", "va.shutdown"]
    return replace(FACTS, capabilities={"methods": methods, "forbidden": list(forbidden)})


def test_a_policy_is_told_and_is_no_trouble_unless_it_forbids_everything() -> None:
    finding = dict(diagnose(with_policy("va.shutdown")))["policy"]
    assert finding.holds
    assert "it forbids 1 of 5 methods altogether: va.shutdown. Of" in finding.text
    check, finding = failure(with_policy("va.getfile", "va.shutdown"))
    assert (check, finding.kind) == ("policy", FailureKind.FORBIDDEN)
    assert "in the guest: va-guest policy why" in finding.remedy


def test_a_policy_is_not_guessed_at() -> None:
    assert dict(diagnose(replace(FACTS, capabilities=None)))["policy"].holds is None
