"""Fixtures for the tests on a real guest.

* `guest`: one booted VM for the whole session, machine ``pc``. For tests that leave it as they found it.
* `attached`: another, with `va-host attach` at work; the port was hot-plugged. For tests that leave it ready.
* A test that reboots, breaks or shuts down its guest starts its own, with `tests.guest.vm.running_vm`.

A test that fails shows where the log of its guest is, and how the log ends.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator

import pytest
import trio

from tests.guest.lab import Attached
from tests.guest.vm import Vm


@pytest.fixture(scope="session", autouse=True)
def end_by_sigterm(request: pytest.FixtureRequest) -> None:
    """Make SIGTERM (a CI's timeout) end the session like Ctrl-C: fixtures clean up, no QEMU is left."""

    def end(*_: object) -> None:
        request.session.shouldstop = "SIGTERM"
        # SIGINT is what trio knows how to deliver to its tasks.
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, end)


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """A booted guest without any virtagent device, shared by all tests of the session."""
    yield from _booted(Vm(tmp_path_factory.mktemp("guest")))


@pytest.fixture(scope="session")
def attached_vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """The booted guest of `attached`, with two more serial ports that nobody uses yet."""
    directory = tmp_path_factory.mktemp("attached")
    extra = []
    for line, place in (("isa-serial", "index=1"), ("pci-serial", "addr=0x1d")):
        socket = f"socket,id={line},path={directory / line}.sock,server=on,wait=off"
        extra += ["-chardev", socket, "-device", f"{line},chardev={line},{place}"]
    yield from _booted(Vm(directory, extra=extra))


def _booted(vm: Vm) -> Iterator[Vm]:
    """Yield a VM when it has booted, and end it afterwards."""
    try:
        vm.start()
        trio.run(vm.booted)
        yield vm
    finally:
        vm.stop()


@pytest.fixture(scope="session")
def attached_once(attached_vm: Vm) -> Iterator[Attached]:
    """What `attached` checks and hands out."""
    attached = Attached(attached_vm)
    try:
        trio.run(attached.attach_and_meet)
        yield attached
    finally:
        attached.stop()


@pytest.fixture
def attached(attached_once: Attached) -> Attached:
    """A guest whose agent answers, shared by all tests of the session."""
    if attached_once.given_up:
        pytest.fail("an earlier test left the guest without an agent that answers")
    try:
        trio.run(attached_once.lab.ready)
    except BaseException:
        # Or each of the tests that follow would wait for it just as long.
        attached_once.given_up = True
        raise
    return attached_once


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the shared guest's log to the report of a test that failed on it."""
    report = yield
    for vm in getattr(item, "funcargs", {}).values():
        if isinstance(vm, Vm) and report.failed:
            report.sections.append((f"guest's log: {vm.console_log}", vm.log_tail()))
    return report
