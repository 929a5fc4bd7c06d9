"""What the link survives on a real guest, and what its users are told meanwhile."""

from __future__ import annotations

import trio

from tests.guest.lab import READY_TIMEOUT, Attached

#: Seconds after an incident in which a call in flight must fail: far below its own timeout, READY_TIMEOUT.
AT_ONCE = 30.0

PORT_CLOSED = "the guest has closed the port: no agent runs there"


async def test_a_call_in_flight_fails_with_the_reason_when_the_guest_is_reset(attached: Attached) -> None:
    vm, lab = attached.vm, attached.lab
    async with lab.client() as watcher:
        failure, seconds = await attached.fail_in_flight(lambda: vm.qmp("system_reset"))
        end_of_log = vm.log_size()
        assert failure == f"broken: the call's session has ended: {PORT_CLOSED}"
        assert seconds < AT_ONCE
        assert f"not ready: port-closed: {PORT_CLOSED}" in await lab.fail(4, "ping")

        await vm.spoken(after=end_of_log)
        hello = await watcher.event("VA_GUEST_HELLO")
        assert hello["rebooted"] is True
    assert "the guest was rebooted" in (await lab.ready())["reason"]
    await lab.succeed("ping")
    await vm.booted(after=end_of_log)


async def test_a_call_in_flight_fails_with_the_reason_when_the_agent_is_killed(attached: Attached) -> None:
    lab = attached.lab
    before = await lab.ready()
    async with lab.client() as watcher:
        failure, seconds = await attached.fail_in_flight(
            lambda: attached.in_guest("systemctl kill -s KILL va-guest")
        )
        assert failure == f"broken: the call's session has ended: {PORT_CLOSED}"
        assert seconds < AT_ONCE
        # systemd starts it again by itself.
        assert (await watcher.event("VA_GUEST_HELLO"))["rebooted"] is False
    after = await lab.ready()
    assert "agent was restarted" in after["reason"]
    assert after["session"] != before["session"]
    await lab.succeed("ping")


async def test_a_stopped_agent_is_not_ready_until_it_is_started(attached: Attached) -> None:
    lab = attached.lab
    await attached.in_guest("systemctl stop va-guest")
    assert (await lab.wait("port-closed"))["reason"] == PORT_CLOSED
    for command in (("ping",), ("capabilities",), ("viewfile", "/etc/hostname"), ("shutdown", "halt")):
        assert f"not ready: port-closed: {PORT_CLOSED}" in await lab.fail(4, *command)
    await attached.in_guest("systemctl start va-guest")
    await lab.ready()
    await lab.succeed("ping")


async def test_an_agent_that_does_not_answer_is_timed_out_and_answers_again(attached: Attached) -> None:
    lab = attached.lab
    before = await lab.ready()
    await attached.in_guest("systemctl kill -s STOP va-guest")
    assert "timed out: va_ping was not done within 0.5 s" in await lab.fail(6, "ping", "--timeout", "0.5")
    await attached.in_guest("systemctl kill -s CONT va-guest")
    await lab.succeed("ping")
    # Nothing was lost, so nothing begins anew.
    assert (await lab.ready())["session"] == before["session"]


async def test_a_guest_that_is_rebooted_by_its_agent_comes_back(attached: Attached) -> None:
    vm, lab = attached.vm, attached.lab
    end_of_log = vm.log_size()
    async with lab.client() as watcher:
        await lab.succeed("shutdown", "reboot")
        await watcher.event("VA_STATE_CHANGE", state="port-closed")
        hello = await watcher.event("VA_GUEST_HELLO")
        assert hello["rebooted"] is True
        await watcher.execute("va_ping", timeout=30)
    await vm.wait_for_log("hypervisor initiated shutdown", timeout=1, after=end_of_log)
    await vm.booted(after=end_of_log)
    await lab.succeed("ping")


async def test_a_call_to_a_paused_guest_is_answered_when_it_goes_on(attached: Attached) -> None:
    vm, lab = attached.vm, attached.lab
    before = await lab.ready()
    async with lab.client() as caller, lab.client() as watcher:
        await vm.qmp("stop")
        assert (await watcher.event("VA_STATE_CHANGE", state="paused"))["reason"] == "QEMU has stopped the VM"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: caller.execute("va_ping", timeout=READY_TIMEOUT))
            await watcher.in_flight(1)
            assert (await watcher.execute("va_status"))["state"] == "paused"
            await vm.qmp("cont")
        await watcher.event("VA_STATE_CHANGE", state="ready")
    assert (await lab.ready())["session"] == before["session"]
