"""The agent's methods, called as the link calls them, on the files and programs of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from virtagent_guest.methods import all_methods, dmesg, files, power
from virtagent_protocol import xmlrpc
from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.limits import BODY_MAX
from virtagent_protocol.registry import Call
from virtagent_protocol.values import Value


async def call(method: str, *params: Value) -> Any:
    """Call a method as the link does, and do what it does after the reply."""
    entry = all_methods().get(method)
    entry.check(list(params))
    received = Call(method, "test.1")
    with trio.fail_after(10):
        result = await entry.handler(received, *params)
        xmlrpc.encode_result(result)
        for follow_up in received.after_reply:
            await follow_up()
    return result


async def fault_of(method: str, *params: Value) -> Fault:
    with pytest.raises(Fault) as caught:
        await call(method, *params)
    return caught.value


def test_every_method_has_help_and_a_signature() -> None:
    for method in all_methods():
        assert method.help.endswith("."), method.name
        assert method.signatures(), method.name
    assert {"va.getdmesg", "va.getfile", "va.shutdown", "guest.ping"} <= set(all_methods().names())


# --- va.getfile --------------------------------------------------------------------------------------


async def test_a_file_comes_byte_for_byte(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    file = tmp_path / "Datei ä"
    file.write_bytes(content)
    assert await call("va.getfile", str(file)) == content
    assert await call("va.getfile", str(file), 255) == content[255:]
    assert await call("va.getfile", str(file), 100_000, 70_000) == content[100_000:170_000]
    assert await call("va.getfile", str(file), len(content) - 5, 100) == content[-5:]
    assert await call("va.getfile", str(file), len(content) + 5) == b""
    assert await call("va.getfile", str(file), 0, 0) == b""


async def test_files_of_proc_and_sys_are_read_although_their_size_says_nothing() -> None:
    assert (await call("va.getfile", "/proc/meminfo")).startswith(b"MemTotal:")
    assert await call("va.getfile", "/proc/meminfo", 3, 6) == b"Total:"
    assert int(await call("va.getfile", "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")) > 0


async def test_the_largest_result_fits_a_message_and_more_says_how_to_read_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(files.RESULT_MAX))
    result = await call("va.getfile", str(file))
    assert result == file.read_bytes()
    assert len(xmlrpc.encode_result(result)) <= BODY_MAX
    with file.open("ab") as more:
        more.write(b"x")
    fault = await fault_of("va.getfile", str(file))
    assert fault.code is FaultCode.TOO_LARGE
    assert f"max file size ({files.RESULT_MAX} bytes) exceeded" in fault.message
    assert "offset and count" in fault.message
    assert await call("va.getfile", str(file), files.RESULT_MAX) == b"x"


async def test_an_endless_file_ends_at_the_limit() -> None:
    # /proc/self/pagemap: 8 bytes for every page of the address space, far more than anyone reads.
    fault = await fault_of("va.getfile", "/proc/self/pagemap")
    assert fault.code is FaultCode.TOO_LARGE


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        (["relative"], "must be absolute"),
        ([""], "must be absolute"),
        (["/x", -1], "offset must not be negative"),
        (["/x", 0, -2], "count must be -1, or 0 to"),
        (["/x", 0, files.RESULT_MAX + 1], "count must be -1, or 0 to"),
        (["/\udcff"], "path is not text"),
        ([b"/x"], "'path' must be string"),
    ],
)
async def test_parameters_that_make_no_sense_are_refused(params: list[Value], complaint: str) -> None:
    fault = await fault_of("va.getfile", *params)
    assert fault.code is FaultCode.INVALID_PARAMS
    assert complaint in fault.message


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/nonexistent", "open failed: /nonexistent: No such file or directory"),
        ("/proc/version/x", "open failed: /proc/version/x: Not a directory"),
        ("/proc", "open failed: /proc: a directory, not a regular file"),
        ("/dev/zero", "open failed: /dev/zero: a character device, not a regular file"),
    ],
)
async def test_what_cannot_be_opened_says_why(path: str, complaint: str) -> None:
    fault = await fault_of("va.getfile", path)
    assert (fault.code, fault.message) == (FaultCode.OPEN_FAILED, complaint)


async def test_a_fifo_without_a_writer_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fault = await fault_of("va.getfile", str(tmp_path / "fifo"))
    assert fault.code is FaultCode.OPEN_FAILED
    assert "a FIFO" in fault.message


async def test_what_opens_and_cannot_be_read_is_another_fault() -> None:
    fault = await fault_of("va.getfile", "/proc/self/mem")
    assert fault.code is FaultCode.READ_FAILED
    assert fault.message == "read failed: /proc/self/mem: Input/output error"


# --- va.getdmesg -------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.access(dmesg.KMSG, os.R_OK), reason="this user may not read the kernel's log")
async def test_the_kernel_log_comes_in_whole_lines_up_to_its_limit() -> None:
    log = await call("va.getdmesg")
    assert 0 < len(log) <= dmesg.RESULT_MAX
    assert log.endswith(b"\n")
    assert all(line.startswith(b"[") and b"] " in line for line in log.splitlines())


def test_a_record_of_the_kernel_becomes_lines() -> None:
    plain = b"6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n"
    assert dmesg.format_record(plain) == [b"[    5.140900] NET: Registered protocol family 10\n"]
    assert dmesg.format_record(rb"30,340,123456789012,-,caller=T1;a\x09\xc3\xa4\x5cx41") == [
        "[123456.789012] a\tä\\x41\n".encode()
    ]
    assert dmesg.format_record(rb"4,1,0,-;two\x0alines") == [
        b"[    0.000000] two\n",
        b"[    0.000000] lines\n",
    ]


# --- va.shutdown -------------------------------------------------------------------------------------


class Recorder:
    """A program in place of /sbin/shutdown, which tells how it was run through a FIFO."""

    def __init__(self, directory: Path) -> None:
        self._fifo = directory / "fifo"
        self._replied = directory / "replied"
        self.program = directory / "shutdown"
        os.mkfifo(self._fifo)
        self.program.write_text(
            "#!/bin/sh\n"
            f"test -e {self._replied} && replied=yes || replied=no\n"
            f'printf "%s\\n" "$@" "$replied" $$ "$(cut -d" " -f6 /proc/$$/stat)" >{self._fifo}\n'
        )
        self.program.chmod(0o755)

    def replied(self) -> None:
        """From now on the reply counts as written."""
        self._replied.touch()

    async def recorded(self) -> list[str]:
        """Return arguments, whether the reply was written, process id and session id."""
        with trio.fail_after(10):
            text = await trio.to_thread.run_sync(self._fifo.read_text, abandon_on_cancel=True)
        return text.splitlines()


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(tmp_path)
    monkeypatch.setattr(power, "SHUTDOWN", str(recorder.program))
    return recorder


@pytest.mark.parametrize(("mode", "option"), [("halt", "-H"), ("powerdown", "-P"), ("reboot", "-r")])
async def test_each_mode_has_its_option_of_shutdown(recorder: Recorder, mode: str, option: str) -> None:
    assert await call("va.shutdown", mode) is None
    *arguments, _, process, session = await recorder.recorded()
    assert arguments == [option, "+0", "hypervisor initiated shutdown"]
    assert process == session  # detached


async def test_powerdown_is_the_default(recorder: Recorder) -> None:
    await call("va.shutdown")
    assert (await recorder.recorded())[0] == "-P"


async def test_shutdown_is_run_after_the_reply_even_if_the_host_closes_then(recorder: Recorder) -> None:
    received = Call("va.shutdown", "test.1")
    await power.shutdown(received, "halt")
    recorder.replied()
    async with trio.open_nursery() as link:
        link.start_soon(received.after_reply[0])
        link.cancel_scope.cancel()
    assert (await recorder.recorded())[3] == "yes"


async def test_another_mode_is_refused_and_the_three_are_named() -> None:
    fault = await fault_of("va.shutdown", "sleep")
    assert fault.code is FaultCode.INVALID_PARAMS
    assert "halt, powerdown, reboot" in fault.message


async def test_a_guest_without_shutdown_says_so_instead_of_replying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "SHUTDOWN", "/nonexistent/shutdown")
    fault = await fault_of("va.shutdown", "halt")
    assert fault.code is FaultCode.FAILED
    assert "/nonexistent/shutdown is missing" in fault.message
