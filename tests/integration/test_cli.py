"""`va-host` with pipes: what it prints, and its exit status."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.clilab import DEADLINE, Lab, document, open_lab, va_host
from virtagent_host.cli import COMMANDS
from virtagent_host.commands import CALL_TIMEOUT
from virtagent_host.frontend.fetch import PART_SIZE
from virtagent_protocol.errors import Forbidden, NotReady, RemoteFault, VirtagentError


@pytest.fixture
async def lab(tmp_path: Path, start_qemu: Callable[..., Any]) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path, start_qemu("-S").path) as lab:
        yield lab


async def test_ping_says_success_and_the_round_trip(lab: Lab) -> None:
    result = await lab.run("ping", "demo")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"success (")
    assert document(await lab.run("ping", "demo", "--json"))["status"] == "success"


async def test_the_name_may_be_left_out_while_one_vm_is_attached(lab: Lab) -> None:
    assert (await lab.run("ping")).returncode == 0
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(lab.runtime.vm("other").bridge))
        other.listen()
        result = await lab.run("ping")
    assert result.returncode == 2
    assert b"several VMs are attached, say which: demo, other" in result.stderr


async def test_a_vm_that_is_not_attached_is_not_there_and_those_that_are_get_listed(lab: Lab) -> None:
    result = await lab.run("ping", "demi")
    assert result.returncode == 3
    assert result.stderr.startswith(
        b"va-host: not there: no VM named 'demi' is attached; attached: demo; start"
    )
    nowhere = await lab.run("ping", VIRTAGENT_RUNTIME_DIR="/nonexistent")
    assert nowhere.returncode == 3
    assert b"no VM is attached in /nonexistent" in nowhere.stderr


@pytest.mark.parametrize(
    ("trouble", "status", "line"),
    [
        (NotReady("no agent has ever opened the port"), 4, b"not ready: no agent has ever opened the port"),
        (Forbidden("blocked by the guest's policy"), 5, b"forbidden: blocked by the guest's policy"),
        (RemoteFault(8, "no\x1b[2J\nva-host: done"), 1, b"refused: no\\x1b[2J\\nva-host: done (fault 8)"),
        (VirtagentError("it broke"), 6, b"broken: it broke"),
    ],
)
async def test_each_kind_of_failure_has_its_word_and_its_exit_status(
    lab: Lab, trouble: VirtagentError, status: int, line: bytes
) -> None:
    lab.vm.trouble = trouble
    result = await lab.run("ping", "demo")
    assert (result.returncode, result.stdout, result.stderr) == (status, b"", b"va-host: " + line + b"\n")
    as_json = await lab.run("ping", "demo", "--json")
    assert as_json.returncode == status
    assert json.loads(as_json.stderr)["error"] == {"kind": trouble.kind.value, "message": str(trouble)}


async def test_a_silent_guest_times_out_after_the_time_given(lab: Lab) -> None:
    lab.vm.silent = True
    start = trio.current_time()
    result = await lab.run("ping", "demo", "--timeout", "0.3")
    assert result.returncode == 6
    assert result.stderr.startswith(
        b"va-host: timed out: va_ping was not done within 0.3 s (the link is 'greeting'"
    )
    assert trio.current_time() - start < CALL_TIMEOUT


async def test_a_file_comes_through_a_pipe_byte_for_byte_in_any_size(lab: Lab) -> None:
    assert len(lab.vm.files["/big"]) > 3 * PART_SIZE
    for path, content in lab.vm.files.items():
        assert (await lab.run("viewfile", "demo", path)).stdout == content
    part = await lab.run("viewfile", "demo", "/big", "--offset", "300000", "--count", "300000")
    assert part.stdout == lab.vm.files["/big"][300000:600000]


async def test_a_file_that_is_not_there_is_the_guests_error(lab: Lab) -> None:
    result = await lab.run("viewfile", "/none")
    assert result.returncode == 1
    assert result.stderr == b"va-host: refused: open failed: /none: No such file or directory (fault 6)\n"


async def test_as_json_a_file_is_one_document_whatever_it_holds(lab: Lab) -> None:
    text = document(await lab.run("viewfile", "/etc/motd", "--json"))
    assert text == {"filepath": "/etc/motd", "offset": 0, "content": "hello\n", "format": "utf8", "count": 6}
    assert document(await lab.run("viewfile", "/tricky", "--json"))["format"] == "base64"


async def test_capabilities_lists_the_methods_one_a_line(lab: Lab) -> None:
    result = await lab.run("capabilities", "demo")
    assert result.stdout.endswith(b"methods:\n  va.capabilities\n  va.ping\n")
    assert document(await lab.run("capabilities", "--json"))["version"] == "0.1.0"


async def test_shutdown_passes_the_mode_and_knows_no_other(lab: Lab) -> None:
    assert (await lab.run("shutdown", "demo", "reboot")).returncode == 0
    assert (await lab.run("shutdown", "halt")).returncode == 0
    assert lab.vm.shutdowns == ["reboot", "halt"]
    assert (await lab.run("shutdown", "demo", "sleep")).returncode == 2


async def test_wait_returns_when_the_state_is_there_or_the_time_is_over(lab: Lab) -> None:
    late = await lab.run("wait", "--timeout", "0.3")
    assert late.returncode == 6
    assert b"the link is 'greeting': the port was opened" in late.stderr

    async def become_ready() -> None:
        await trio.sleep(0.3)
        lab.vm.ready.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(become_ready)
        assert document(await lab.run("wait", "demo", "--until", "ready", "--json"))["state"] == "ready"


async def test_wait_waits_for_the_service_as_well(lab: Lab) -> None:
    lab.vm.ready.set()
    bridge, away = lab.runtime.vm("demo").bridge, lab.runtime.path / "away"
    bridge.rename(away)

    async def come_back() -> None:
        await trio.sleep(0.3)
        away.rename(bridge)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        assert (await lab.run("wait", "demo")).returncode == 0


async def test_list_shows_every_attached_vm_and_its_state(lab: Lab) -> None:
    assert (await lab.run("list")).stdout == b"demo  greeting     the port was opened\n"
    assert document(await lab.run("list", "--json"))[0] == {"name": "demo", **lab.vm.status()}
    nothing = await lab.run("list", VIRTAGENT_RUNTIME_DIR="/nonexistent")
    assert (nothing.returncode, nothing.stdout) == (0, b"")


async def test_qmp_runs_qemus_commands_and_ours(lab: Lab) -> None:
    assert document(await lab.run("qmp", "demo", "query-status"))["status"] == "prelaunch"
    assert document(await lab.run("qmp", "va_ping", "timeout=2"))["status"] == "success"
    added = await lab.run("qmp", "object-add", "qom-type=memory-backend-ram", "id=m0", "size=1048576")
    assert document(added) == {}
    assert "memory backend: m0" in document(
        await lab.run("qmp", "human-monitor-command", "command-line=info memdev")
    )


async def test_an_error_of_qemus_is_told_in_its_own_words(lab: Lab) -> None:
    result = await lab.run("qmp", "no-such-command")
    assert result.returncode == 1
    assert result.stderr == b"va-host: refused: The command no-such-command has not been found\n"


async def test_events_are_streamed_as_they_happen(lab: Lab) -> None:
    process = await trio.lowlevel.open_process(
        va_host("events", "demo", "--json", "--only", "RESUME", "--count", "1"),
        stdout=subprocess.PIPE,
        env=lab.environ,
    )
    try:
        with trio.fail_after(DEADLINE):
            # Until it is connected it can see no event, so they go on until it has seen one.
            while process.poll() is None:
                await lab.run("qmp", "cont")
                await lab.run("qmp", "stop")
            assert process.stdout is not None
            event = json.loads(await process.stdout.receive_some())
    finally:
        process.kill()
    assert event["event"] == "RESUME"
    assert process.returncode == 0


async def test_a_reader_that_has_seen_enough_ends_the_stream_quietly(lab: Lab) -> None:
    command = " ".join(va_host("viewfile", "demo", "/big"))
    result = await trio.run_process(
        ["bash", "-c", f"{command} | head -c 5 | wc -c; echo ${{PIPESTATUS[0]}}"],
        capture_stdout=True,
        capture_stderr=True,
        env=lab.environ,
    )
    assert result.stdout.split() == [b"5", b"141"]
    assert result.stderr == b""


async def test_ctrl_c_ends_it_quietly_with_130(lab: Lab) -> None:
    process = await trio.lowlevel.open_process(
        va_host("events", "demo", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=lab.environ
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with trio.fail_after(DEADLINE):
            first: bytes | bytearray = b""
            while not first:
                await lab.run("qmp", "cont")
                await lab.run("qmp", "stop")
                with trio.move_on_after(0.1):
                    first = await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            assert await process.stderr.receive_some() == b""
    finally:
        process.kill()


async def test_a_usage_error_is_2_and_help_is_for_every_command(lab: Lab) -> None:
    assert (await lab.run("ping", "a", "b")).returncode == 2
    assert (await lab.run("ping", "a/b")).returncode == 2
    assert (await lab.run("attach")).returncode == 2
    listed = (await lab.run("--help")).stdout.decode()
    commands = listed.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in commands] == list(COMMANDS)
    for line in commands:
        shown = await lab.run(line.split()[0], "--help")
        assert shown.returncode == 0
        assert b"Example" in shown.stdout


async def test_the_shell_completes_commands_names_states_and_modes(lab: Lab) -> None:
    async def complete(*words: str) -> list[str]:
        asked = {"COMP_WORDS": " ".join(["va-host", *words]), "COMP_CWORD": str(len(words))}
        result = await lab.run(stdin=b"", _VA_HOST_COMPLETE="bash_complete", **asked)
        return [line.partition(",")[2] for line in result.stdout.decode().split()]

    assert await complete("viewf") == ["viewfile"]
    assert await complete("ping", "") == ["demo"]
    assert await complete("shutdown", "demo", "p") == ["powerdown"]
    assert await complete("wait", "demo", "--until", "r") == ["ready"]
    assert b"_VA_HOST_COMPLETE" in (await lab.run("completion", "zsh")).stdout


async def test_detach_returns_when_the_service_has_let_go(lab: Lab) -> None:
    # Nothing ends the bridge here when it is told to, so detach waits, and says that it waited in vain.
    assert (await lab.run("detach", "demo", "--timeout", "0.3")).returncode == 6
    assert lab.vm.detached.is_set()

    results = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def detach() -> None:
            results.append(await lab.run("detach", "demo"))

        await lab.vm.detached_again.wait()
        assert not results
        lab.end()
    assert results[0].returncode == 0, results[0].stderr


async def test_a_va_host_that_hangs_does_not_hide_the_others_from_list(lab: Lab) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(lab.runtime.vm("hung").bridge))
        hung.listen()
        demo, other = document(await lab.run("list", "--json"))
    assert demo["state"] == "greeting"
    assert other["error"].startswith("timed out: va-host of 'hung' does not answer")


async def test_a_thin_client_does_not_import_what_would_make_it_slow(lab: Lab) -> None:
    result = await lab.run("ping", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition(b"|")[2].strip() for line in result.stderr.splitlines()}
    assert b"virtagent_host.frontend.client" in imported
    assert imported.isdisjoint({b"trio", b"asyncio", b"qemu.qmp", b"xmlrpc.client", b"readline"})


async def test_a_full_disk_is_told_in_one_line(lab: Lab) -> None:
    command = " ".join(va_host("viewfile", "demo", "/big"))
    result = await trio.run_process(
        ["bash", "-c", f"{command} >/dev/full"], capture_stderr=True, check=False, env=lab.environ
    )
    assert result.returncode == 6
    assert result.stderr == b"va-host: broken: cannot write to stdout: No space left on device\n"
