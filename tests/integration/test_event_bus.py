"""The built-in events of systemd and logind: a real system bus, with services that say what a test wants."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.buslab import PrivateBus, Service, private_bus
from virtagent_guest.events.sources import bus as bus_module
from virtagent_guest.events.sources.asked import HOST, Asked
from virtagent_guest.events.sources.boot import BootListener
from virtagent_guest.events.sources.bus import Bus, Listener, Object, Signal, listen
from virtagent_guest.events.sources.shutdown import ShutdownListener
from virtagent_guest.events.sources.units import UnitListener
from virtagent_guest.events.sources.users import UserListener
from virtagent_protocol.events import Batch
from virtagent_protocol.link import Link
from virtagent_protocol.linkstate import LinkEvent
from virtagent_protocol.registry import Call, Registry
from virtagent_protocol.session import Role
from virtagent_protocol.values import Struct, Value

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="needs dbus-daemon")

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0

SYSTEMD, LOGIND = "org.freedesktop.systemd1", "org.freedesktop.login1"
SYSTEMD_PATH, LOGIND_PATH = "/org/freedesktop/systemd1", "/org/freedesktop/login1"
MANAGER, LOGIND_MANAGER = f"{SYSTEMD}.Manager", f"{LOGIND}.Manager"
UNIT, PROPERTIES = f"{SYSTEMD}.Unit", "org.freedesktop.DBus.Properties"
X_PATH = f"{SYSTEMD_PATH}/unit/x_2eservice"
ENTERED = f"{UNIT} InactiveEnterTimestampMonotonic"


class Told:
    """The events that were put."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[str, Struct]](1000)

    def emit(self, name: str, data: Struct) -> None:
        self._send.send_nowait((name, data))

    async def next(self) -> tuple[str, Struct]:
        return await self._receive.receive()

    def nothing(self) -> bool:
        return not self._receive.statistics().current_buffer_used


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PrivateBus]:
    async with private_bus(tmp_path) as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        yield bus


class Mark(Listener):
    """Hears one signal that a test sends after all others, and says so: what was to be told before, was."""

    events = "mark"
    services = (SYSTEMD, LOGIND)
    rules = (f"sender='{SYSTEMD}',member='Mark'", f"sender='{LOGIND}',member='Mark'")

    def __init__(self) -> None:
        self.began = trio.Event()
        self.heard = trio.Event()

    async def begin(self, bus: Bus, service: str) -> None:
        # The last of the listeners: all have begun.
        self.began.set()

    async def signal(self, bus: Bus, signal: Signal) -> None:
        if signal.member == "Mark":
            self.heard.set()

    async def reached(self, service: Service) -> None:
        """Wait until all that *service* sent so far has been handled."""
        self.heard = trio.Event()
        await service.emit("/", "a.b", "Mark", "s", ("",))
        await self.heard.wait()


@asynccontextmanager
async def listening(*listeners: Listener) -> AsyncIterator[Mark]:
    mark = Mark()
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, [*listeners, mark])
            yield mark
            nursery.cancel_scope.cancel()


def boot_answers(systemd: Service, finished: int) -> None:
    for name, signature, value in (
        ("FinishTimestampMonotonic", "t", finished),
        ("UserspaceTimestampMonotonic", "t", 2_000_000),
        ("SystemState", "s", "degraded"),
        ("NFailedUnits", "u", 1),
    ):
        systemd.answers[f"{SYSTEMD_PATH} {MANAGER} {name}"] = ("v", ((signature, value),))


BOOTED: Struct = {"seconds": 12.5, "userspace-seconds": 10.5, "state": "degraded", "failed-units": 1}


async def test_the_end_of_the_boot_is_told_once_per_boot(bus: PrivateBus, told: Told, tmp_path: Path) -> None:
    note = tmp_path / "virtagent" / "boot-finished"
    with trio.fail_after(DEADLINE):
        async with bus.service(SYSTEMD) as systemd:
            boot_answers(systemd, 0)
            async with listening(BootListener(told.emit, note)) as mark:
                await mark.began.wait()
                assert told.nothing()
                boot_answers(systemd, 12_500_000)
                for _ in range(2):
                    await systemd.emit(SYSTEMD_PATH, MANAGER, "StartupFinished", "tttttt", (0, 0, 1, 2, 3, 6))
                assert await told.next() == ("boot-finished", BOOTED)
                await mark.reached(systemd)
            # An agent that starts later knows by the note; without, it tells though nobody signals.
            async with listening(BootListener(told.emit, note)) as mark:
                await mark.began.wait()
            assert told.nothing()
            note.write_text("another boot")
            async with listening(BootListener(told.emit, note)):
                assert await told.next() == ("boot-finished", BOOTED)


def failed(when: int, state: str = "failed") -> tuple[str, dict[str, Any], list[str]]:
    changed = {"ActiveState": ("s", state), "InactiveEnterTimestampMonotonic": ("t", when)}
    return (UNIT, changed, ["Conditions"])


async def change(systemd: Service, body: tuple[Any, ...]) -> None:
    await systemd.emit(X_PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)


async def test_a_unit_that_fails_is_told_each_time_once(bus: PrivateBus, told: Told) -> None:
    with trio.fail_after(DEADLINE):
        async with bus.service(SYSTEMD) as systemd, listening(UnitListener(told.emit, since=100)) as mark:
            systemd.answers["ListUnitsByPatterns"] = ("a(ssssssouso)", ([],))
            own = f"{SYSTEMD}.Service"
            systemd.answers[f"{X_PATH} {own} Result"] = ("v", (("s", "exit-code"),))
            systemd.answers[f"{X_PATH} {own} ExecMainStatus"] = ("v", (("i", 3),))
            await mark.began.wait()
            for body in (
                failed(50, "activating"),
                failed(200),
                failed(200),  # something else of it has changed
                failed(200, "activating"),
                failed(300),
                failed(400),  # it was active in between, which nobody told
            ):
                await change(systemd, body)
            await mark.reached(systemd)
            for _ in range(3):
                assert await told.next() == (
                    "unit-failed",
                    {"unit": "x.service", "result": "exit-code", "status": 3},
                )
            assert told.nothing()
            assert "Subscribe" in systemd.calls


async def test_a_unit_that_fails_while_its_state_is_asked_for_is_told_once(
    bus: PrivateBus, told: Told
) -> None:
    unit = ("x.mount", "", "loaded", "failed", "failed", "", X_PATH, 0, "", "/")
    with trio.fail_after(DEADLINE):
        async with bus.service(SYSTEMD) as systemd, listening(UnitListener(told.emit, since=100)) as mark:
            systemd.answers["ListUnitsByPatterns"] = ("a(ssssssouso)", ([unit],))
            systemd.answers[f"{X_PATH} {ENTERED}"] = ("v", (("t", 200),))
            # These waited while the listener asked.
            await mark.began.wait()
            await change(systemd, failed(0, "active"))
            await change(systemd, failed(200))
            await mark.reached(systemd)
            assert (await told.next())[0] == "unit-failed"
            assert told.nothing()


async def test_a_unit_that_failed_before_the_bus_was_there_is_found_there(
    bus: PrivateBus, told: Told
) -> None:
    unit = ("x.mount", "", "loaded", "failed", "failed", "", "/org/x_2emount", 0, "", "/")
    old = ("y.mount", "", "loaded", "failed", "failed", "", "/org/y_2emount", 0, "", "/")
    with trio.fail_after(DEADLINE):
        async with listening(UnitListener(told.emit, since=100)) as mark:
            for _ in range(2):  # systemd goes, and comes back
                async with bus.service(SYSTEMD) as systemd:
                    systemd.answers["ListUnitsByPatterns"] = ("a(ssssssouso)", ([unit, old],))
                    systemd.answers[f"/org/x_2emount {ENTERED}"] = ("v", (("t", 200),))
                    systemd.answers[f"/org/y_2emount {ENTERED}"] = ("v", (("t", 50),))
                    await mark.began.wait()
                    mark.began = trio.Event()
            assert await told.next() == ("unit-failed", {"unit": "x.mount", "result": None, "status": None})
            assert told.nothing()


def session(logind: Service, path: str, user: str, began: int, kind: str = "user") -> tuple[object, ...]:
    logind.answers[f"{path} {LOGIND}.Session"] = (
        "a{sv}",
        (
            {
                "Id": ("s", path[-1]),
                "Class": ("s", kind),
                "Name": ("s", user),
                "User": ("(uo)", (1000, "/u")),
                "Type": ("s", "tty"),
                "TTY": ("s", "tty1"),
                "Service": ("s", "login"),
                "RemoteHost": ("s", ""),
                "TimestampMonotonic": ("t", began),
            },
        ),
    )
    return (path[-1], 1000, user, "", path)


async def test_users_who_log_in_and_out_are_told(bus: PrivateBus, told: Told) -> None:
    with trio.fail_after(DEADLINE):
        async with bus.service(LOGIND) as logind, listening(UserListener(told.emit, since=100)) as mark:
            there = [session(logind, "/s/1", "early", 50), session(logind, "/s/2", "late", 150)]
            logind.answers["ListSessions"] = ("a(susso)", (there,))
            await mark.began.wait()
            session(logind, "/s/3", "new", 200)
            session(logind, "/s/4", "cron", 200, "background")
            for member, path in (
                ("SessionNew", "/s/2"),
                ("SessionNew", "/s/3"),
                ("SessionNew", "/s/4"),
                ("SessionNew", "/s/5"),  # has ended before we could ask
                ("SessionRemoved", "/s/4"),
                ("SessionRemoved", "/s/1"),
                ("SessionRemoved", "/s/3"),
            ):
                await logind.emit(LOGIND_PATH, LOGIND_MANAGER, member, "so", (path[-1], path))
            await mark.reached(logind)
            seen = [await told.next() for _ in range(4)]
            assert [(name, data["user"]) for name, data in seen] == [
                ("user-logged-in", "late"),
                ("user-logged-in", "new"),
                ("user-logged-out", "early"),
                ("user-logged-out", "new"),
            ]
            assert seen[1][1] == {
                "session": "3",
                "user": "new",
                "uid": 1000,
                "type": "tty",
                "tty": "tty1",
                "service": "login",
                "remote-host": "",
            }
            assert told.nothing()


def running(systemd: Service) -> None:
    systemd.answers[f"{SYSTEMD_PATH} {MANAGER} SystemState"] = ("v", (("s", "running"),))


def quiet(logind: Service) -> None:
    logind.answers[f"{LOGIND_PATH} {LOGIND_MANAGER} PreparingForShutdown"] = ("v", (("b", False),))


@pytest.mark.parametrize(
    ("signs", "mode"),
    [
        # By logind, then systemd; by systemd alone; by a newer logind; by nobody in time.
        (["PrepareForShutdown", "reboot.target"], "reboot"),
        (["poweroff.target", "halt.target"], "powerdown"),
        (["PrepareForShutdownWithMetadata", "PrepareForShutdown", "halt.target"], "halt"),
        (["PrepareForShutdown"], "unknown"),
    ],
)
async def test_the_first_sign_of_a_shutdown_is_told(
    bus: PrivateBus, told: Told, signs: list[str], mode: str
) -> None:
    with trio.fail_after(DEADLINE):
        async with (
            bus.service(SYSTEMD) as systemd,
            bus.service(LOGIND) as logind,
            listening(ShutdownListener(told.emit, Asked())) as mark,
        ):
            running(systemd)
            quiet(logind)
            await mark.began.wait()
            await mark.reached(systemd)
            await systemd.emit(SYSTEMD_PATH, MANAGER, "JobNew", "uos", (1, "/j", "x.target"))
            for sign in signs:
                if sign.endswith(".target"):
                    await systemd.emit(SYSTEMD_PATH, MANAGER, "JobNew", "uos", (2, "/j", sign))
                elif sign == "PrepareForShutdown":
                    await logind.emit(LOGIND_PATH, LOGIND_MANAGER, sign, "b", (True,))
                else:
                    about = {"type": ("s", "halt")}
                    await logind.emit(LOGIND_PATH, LOGIND_MANAGER, sign, "ba{sv}", (True, about))
                await mark.reached(logind)
                await mark.reached(systemd)
            assert await told.next() == ("shutdown-begun", {"mode": mode, "by": "guest"})
            await mark.reached(systemd)
            assert told.nothing()


@pytest.mark.parametrize("mode", ["halt", "unknown"])
async def test_a_shutdown_that_began_before_the_agent_is_found(
    bus: PrivateBus, told: Told, mode: str
) -> None:
    with trio.fail_after(DEADLINE):
        async with bus.service(SYSTEMD) as systemd, bus.service(LOGIND) as logind:
            systemd.answers[f"{SYSTEMD_PATH} {MANAGER} SystemState"] = ("v", (("s", "stopping"),))
            jobs = [
                (7, "x.service", "stop", "running", "/j", "/u"),
                (8, f"{mode}.target", "start", "", "/j", "/u"),
            ]
            systemd.answers["ListJobs"] = ("a(usssoo)", (jobs,))
            logind.answers[f"{LOGIND_PATH} {LOGIND_MANAGER} PreparingForShutdown"] = ("v", (("b", True),))
            async with listening(ShutdownListener(told.emit, Asked())) as mark:
                assert await told.next() == ("shutdown-begun", {"mode": mode, "by": "guest"})
                await mark.reached(systemd)
                await mark.reached(logind)
            assert told.nothing()


async def test_a_shutdown_that_the_host_asked_for_is_by_the_host(bus: PrivateBus, told: Told) -> None:
    asked = Asked()
    with trio.fail_after(DEADLINE):
        async with bus.service(LOGIND) as logind, listening(ShutdownListener(told.emit, asked)) as mark:
            quiet(logind)
            await mark.began.wait()
            asked.note(HOST, "powerdown")
            # The second comes to nothing, and the third is another one.
            for begins in (True, False, True):
                await logind.emit(LOGIND_PATH, LOGIND_MANAGER, "PrepareForShutdown", "b", (begins,))
            await mark.reached(logind)
            for _ in range(2):
                assert await told.next() == ("shutdown-begun", {"mode": "powerdown", "by": "host"})
            assert told.nothing()


async def test_nobody_else_can_speak_for_systemd(bus: PrivateBus, told: Told) -> None:
    with trio.fail_after(DEADLINE):
        async with (
            bus.service() as stranger,
            bus.service(SYSTEMD) as systemd,
            listening(ShutdownListener(told.emit, Asked()), UnitListener(told.emit, since=0)) as mark,
        ):
            systemd.answers["ListUnitsByPatterns"] = ("a(ssssssouso)", ([],))
            running(systemd)
            await mark.began.wait()
            # To everybody on the bus, so to us as well: unique names are given in order.
            for number in range(10):
                await stranger.emit(
                    SYSTEMD_PATH, MANAGER, "JobNew", "uos", (1, "/j", "reboot.target"), f":1.{number}"
                )
                await stranger.emit(
                    X_PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", failed(200), f":1.{number}"
                )
            await stranger.settle()
            await mark.reached(systemd)
            assert told.nothing()
            await systemd.emit(SYSTEMD_PATH, MANAGER, "JobNew", "uos", (1, "/j", "reboot.target"))
            assert (await told.next())[0] == "shutdown-begun"


async def test_a_bus_that_comes_back_is_served_again(
    bus: PrivateBus, told: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "virtagent.events")
    monkeypatch.setattr(bus_module, "AGAIN_MAX", 0.5)
    bus.stop()
    with trio.fail_after(DEADLINE):
        async with listening(ShutdownListener(told.emit, Asked())) as mark:
            for _ in range(2):
                await bus.start()
                async with bus.service(SYSTEMD) as systemd:
                    await mark.began.wait()
                    mark.began = trio.Event()
                    await mark.reached(systemd)
                    bus.stop()
            await bus.start()
            async with bus.service(SYSTEMD) as systemd:
                await mark.began.wait()
                await systemd.emit(SYSTEMD_PATH, MANAGER, "JobNew", "uos", (1, "/j", "reboot.target"))
                assert (await told.next())[0] == "shutdown-begun"
    assert "trying again; until then, there are no events of systemd and logind" in caplog.text


class Busy(Listener):
    """Asks systemd when it is told to."""

    events = "busy"
    services = (SYSTEMD,)
    rules = ()

    def __init__(self) -> None:
        self.began, self.go_on = trio.Event(), trio.Event()

    async def begin(self, bus: Bus, service: str) -> None:
        self.began.set()
        await self.go_on.wait()
        await bus.call(Object(SYSTEMD, "/", "a.b"), "c")

    async def signal(self, bus: Bus, signal: Signal) -> None:
        pass


async def test_what_was_signalled_before_the_bus_went_away_is_told(bus: PrivateBus, told: Told) -> None:
    busy = Busy()
    with trio.fail_after(DEADLINE):
        async with (
            bus.service(SYSTEMD) as systemd,
            bus.service(LOGIND) as logind,
            listening(busy, ShutdownListener(told.emit, Asked())),
        ):
            await busy.began.wait()
            await logind.emit(LOGIND_PATH, LOGIND_MANAGER, "PrepareForShutdown", "b", (True,))
            await logind.settle()
            await systemd.emit(SYSTEMD_PATH, MANAGER, "JobNew", "uos", (1, "/j", "reboot.target"))
            await systemd.settle()
            bus.stop()
            busy.go_on.set()
            assert await told.next() == ("shutdown-begun", {"mode": "reboot", "by": "guest"})


async def test_a_listener_that_fails_is_told_and_harms_no_other(
    bus: PrivateBus, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(DEADLINE):
        async with (
            bus.service(SYSTEMD) as systemd,
            listening(UnitListener(told.emit), ShutdownListener(told.emit, Asked())) as mark,
        ):
            running(systemd)
            await mark.began.wait()  # this systemd refuses to list its units
            await change(systemd, (UNIT, {"ActiveState": ("s", "failed")}, []))  # and forgets to say when
            await systemd.emit(SYSTEMD_PATH, MANAGER, "JobNew", "uos", (1, "/j", "reboot.target"))
            assert (await told.next())[0] == "shutdown-begun"
    warnings = [record.getMessage() for record in caplog.records if record.levelname != "INFO"]
    assert warnings == [
        f"unit-failed: {SYSTEMD} refused ListUnitsByPatterns: org.example.No",
        "unit-failed: a signal, or the state of its service, was not understood",
    ]


async def test_more_signals_than_can_wait_cost_a_connection_and_no_event(
    bus: PrivateBus, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "SIGNALS_MAX", 4)
    unit = ("x.mount", "", "loaded", "failed", "failed", "", "/org/x_2emount", 0, "", "/")
    with trio.fail_after(DEADLINE):
        async with bus.service(SYSTEMD) as systemd, listening(UnitListener(told.emit, since=100)) as mark:
            systemd.answers["ListUnitsByPatterns"] = ("a(ssssssouso)", ([],))
            await mark.began.wait()
            mark.began = trio.Event()
            systemd.answers["ListUnitsByPatterns"] = ("a(ssssssouso)", ([unit],))
            systemd.answers[f"/org/x_2emount {ENTERED}"] = ("v", (("t", 200),))
            while not mark.began.is_set():
                for _ in range(100):
                    await change(systemd, failed(50, "active"))
                with trio.move_on_after(1):
                    await mark.began.wait()
            assert (await told.next())[1]["unit"] == "x.mount"


CONFIG = """[events]
off = ["addresses-changed", "filesystem-filling", "filesystem-ok", "oom-kill", "boot-finished"]
"""


async def test_an_agent_tells_its_host(bus: PrivateBus, tmp_path: Path) -> None:
    config, socket = tmp_path / "guest.toml", tmp_path / "channel"
    config.write_text(CONFIG)
    came = trio.Event()
    registry = Registry()
    batches = []

    @registry.method("va.events")
    async def events(call: Call, batch: dict[str, Value]) -> dict[str, Value]:
        """Take events."""
        batches.append(Batch.from_value(batch))
        came.set()
        return {"confirmed": batches[-1].events[-1].sequence}

    command = [
        sys.executable,
        "-m",
        "virtagent_guest",
        "--config",
        str(config),
        "-c",
        f"unix-listen:{socket}",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}"}
    with trio.fail_after(DEADLINE):
        async with bus.service(SYSTEMD) as systemd, trio.open_nursery() as nursery:
            systemd.answers["ListUnitsByPatterns"] = ("a(ssssssouso)", ([],))
            nursery.start_soon(partial(trio.run_process, command, env=environment, check=False))
            while "ListUnitsByPatterns" not in systemd.calls:
                await trio.sleep(0.01)
            async with await trio.open_unix_socket(socket) as stream:
                link = Link(Role.HOST, "test", registry, boot_id="host")
                link.hint(LinkEvent.PORT_OPENED, "the test has opened it")
                nursery.start_soon(link.run, stream)
                await change(systemd, failed(time.monotonic_ns() // 1000))
                await came.wait()
                nursery.cancel_scope.cancel()
    (event,) = batches[0].events
    assert (event.name, event.caller) == ("unit-failed", None)
    assert json.loads(event.data) == {"unit": "x.service", "result": None, "status": None}
