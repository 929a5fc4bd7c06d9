"""Programs in the real guest: users, terminals, and what systemd makes of the agent's children."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import termios
import time

import trio

from tests.guest.lab import Attached, Completed

#: Seconds for anything on a terminal: under TCG, on a busy machine.
DEADLINE = 60.0


async def exec_(attached: Attached, *arguments: str, stdin: bytes = b"") -> Completed:
    return await attached.lab.run("exec", "demo", *arguments, stdin=stdin)


async def test_bytes_and_status_pass_through(attached: Attached) -> None:
    payload = bytes(range(256)) * 1000
    assert await exec_(attached, "--", "cat", stdin=payload) == Completed(0, payload, "")
    result = await exec_(attached, "--shell", "--", "echo out; echo err >&2; exit 7")
    assert result == Completed(7, b"out\n", "err\n")
    assert (await exec_(attached, "--", "nosuchprogram")).status == 255


async def test_root_is_root_and_a_user_has_the_groups_of_the_user(attached: Attached) -> None:
    await attached.in_guest("id walter || useradd --create-home --groups adm,games --shell /bin/bash walter")
    assert (await exec_(attached, "--shell", "--", "id -un; pwd")).stdout == b"root\n/root\n"
    script = 'id -un; id -Gn; pwd; echo "$HOME $USER $SHELL"; cat /etc/shadow'
    result = await exec_(attached, "-u", "walter", "--shell", "--", script)
    assert result.stdout.decode() == "walter\nwalter adm games\n/home/walter\n/home/walter walter /bin/bash\n"
    assert (result.status, "Permission denied" in result.stderr) == (1, True)
    # On a terminal it is another path through the agent, and the terminal is the user's.
    result = await exec_(attached, "-t", "-u", "walter", "--shell", "--", "id -un; stat -c %U $(tty)")
    assert result == Completed(0, b"walter\r\nwalter\r\n", "")


async def test_a_program_may_do_what_root_may(attached: Attached) -> None:
    script = "touch /etc/x && rm /etc/x && mount -t tmpfs none /mnt && umount /mnt && echo done"
    assert await exec_(attached, "--shell", "--", script) == Completed(0, b"done\n", "")


async def test_a_program_is_hung_up_with_the_command(attached: Attached) -> None:
    command = attached.lab.command_line("exec", "demo", "--", "sleep", "4242")
    process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL)
    await until(attached, "pgrep -xf 'sleep 4242'")
    process.kill()
    await process.wait()
    await until(attached, "! pgrep -xf 'sleep 4242'")


async def until(attached: Attached, condition: str) -> None:
    with trio.fail_after(DEADLINE):
        while (await attached.vm.console(condition)).status != 0:
            await trio.sleep(0.1)


async def test_a_detached_job_outlives_its_session(attached: Attached) -> None:
    script = "echo one; while ! [ -e /run/go ]; do sleep 0.1; done; echo two"
    job = (await exec_(attached, "-d", "--shell", "--", script)).stdout.decode().strip()
    attached.service.kill()
    attached.attach()
    await attached.lab.ready()
    await attached.in_guest("touch /run/go")
    result = await attached.lab.run("attach-job", "demo", job, "--offset", "4")
    assert result == Completed(0, b"two\n", "")
    await attached.in_guest("rm /run/go")


class Screen:
    """A va-host command on a terminal."""

    def __init__(self, attached: Attached, *arguments: str) -> None:
        self.fd, slave = pty.openpty()
        self._before = termios.tcgetattr(slave)
        self._slave = slave
        termios.tcsetwinsize(slave, (24, 80))  # type: ignore[attr-defined,unused-ignore]
        self._process = subprocess.Popen(
            attached.lab.command_line(*arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "linux"},
        )

    def read_until(self, pattern: bytes) -> bytes:
        seen, deadline = b"", time.monotonic() + DEADLINE
        while not re.search(pattern, seen):
            assert select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))[0], f"only {seen!r}"
            seen += os.read(self.fd, 4096)
        return seen

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def end(self) -> int:
        """Wait for the end, see that the terminal is as it was, and return the exit status."""
        deadline, seen = time.monotonic() + DEADLINE, b""
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise AssertionError(f"va-host still ran; last seen: {seen!r}")
            if select.select([self.fd], [], [], 0.1)[0]:
                seen += os.read(self.fd, 4096)
        assert termios.tcgetattr(self._slave) == self._before
        os.close(self.fd)
        os.close(self._slave)
        return self._process.returncode


async def test_a_shell_is_a_login_shell_with_job_control(attached: Attached) -> None:
    def talk() -> None:
        screen = Screen(attached, "shell", "demo")
        screen.read_until(rb"[#$] $")
        screen.type(b"shopt login_shell; tty\n")
        screen.read_until(rb"login_shell\s+on\r\n/dev/pts/\d+\r\n")
        screen.type(b"sleep 4242\n")
        time.sleep(1)
        screen.type(b"\x1a")
        screen.read_until(rb"Stopped\s+sleep 4242")
        screen.type(b"fg\n")
        screen.read_until(rb"fg\r\n.*sleep 4242")
        time.sleep(1)
        screen.type(b"\x03")
        screen.read_until(rb"[#$] $")
        screen.type(b"exit 5\n")
        assert screen.end() == 5

    await trio.to_thread.run_sync(talk)


async def test_an_editor_works(attached: Attached) -> None:
    def talk() -> None:
        screen = Screen(attached, "exec", "demo", "-t", "--", "busybox", "vi", "/root/edited")
        screen.read_until(rb"/root/edited")
        screen.type(b"ihello from vi\x1b")
        screen.read_until(rb"hello from vi")
        screen.type(b":wq\r")
        assert screen.end() == 0

    await trio.to_thread.run_sync(talk)
    assert await attached.in_guest("cat /root/edited && rm /root/edited") == "hello from vi\n"


async def test_top_works(attached: Attached) -> None:
    def talk() -> None:
        screen = Screen(attached, "exec", "demo", "-t", "--", "top", "-d", "1")
        screen.read_until(rb"PID.*COMMAND")
        screen.type(b"q")
        assert screen.end() == 0

    await trio.to_thread.run_sync(talk)
