"""Commands that run programs in the guest: exec and shell, and what concerns detached ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from virtagent_protocol.errors import VirtagentError

from ..commands import COMMANDS as TABLE
from ..execution import CALL_TIMEOUT, TIMEOUT
from ..frontend.output import PROGRAM, put, put_error, put_json
from .common import (
    Invocation,
    VmName,
    examples,
    json_option,
    session_option,
    timeout_option,
    vm_argument,
)

#: The user's own shell, as a login shell. Of a guest whose agent has no $SHELL, /bin/sh.
_LOGIN = 'exec "${SHELL:-/bin/sh}" -l'
_STATUS = (
    "The exit status is that of the program, 128 + N if signal N killed it, 124 if its deadline did. If "
    "va-host, the connection or the guest's agent fails, or the program cannot be started, it is 255, as "
    "with ssh, and stderr says why: 'va-host: KIND: …'. A wrong use of va-host itself is 2."
)

_user = click.option("-u", "--user", metavar="USER", help="Run it as this user, with all of its groups.")
_start_timeout = timeout_option(TIMEOUT, "How long to wait for it to start.")


class _ExecCommand(click.Command):
    """Takes what stands behind ``--``, or behind NAME, as it is: it is the program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        program: list[str] | None = None
        if "--" in args:
            at = args.index("--")
            args, program = args[:at], args[at + 1 :]
        else:
            # Without --, NAME must be there, and what follows is the program's, options and all.
            ctx.allow_interspersed_args = False
        rest = super().parse_args(ctx, args)
        words: tuple[str, ...] = ctx.params["words"]
        if program is None:
            name, program = (words[0] if words else None), list(words[1:])
        elif len(words) > 1:
            raise click.UsageError(f"unexpected argument before '--': {words[1]}", ctx)
        else:
            name = words[0] if words else None
        if not program:
            raise click.UsageError("say what to run: exec NAME -- PROGRAM ARGUMENT…", ctx)
        ctx.params["words"] = (name, program)
        return rest


@click.command(
    name="exec",
    cls=_ExecCommand,
    help=f"""Run a program in the guest, as ssh would: stdin, stdout, stderr and exit status pass through.

    There is no shell unless --shell asks for one: the program gets its arguments as they are. Ctrl-C, and
    SIGTERM, SIGHUP and SIGQUIT, go to it; a third Ctrl-C ends va-host. If va-host ends, whatever the reason,
    the program gets SIGHUP, and SIGKILL 5 s later.

    {_STATUS}""",
    epilog=examples(
        "va-host exec demo -- ls -l /",
        "va-host exec demo -t -- vi /etc/motd",
        "va-host exec demo --shell -- 'dmesg | tail'",
        "va-host exec demo -- tar -c /etc >etc.tar",
        "va-host exec demo --detach -- apt-get -y upgrade",
    ),
)
@click.argument("words", nargs=-1, metavar="[NAME] -- PROGRAM [ARGUMENT]…")
@click.option(
    "-t", "--tty", is_flag=True, help="Give it a terminal: for vi, top, and what asks for passwords."
)
@_user
@click.option("-C", "--cwd", metavar="DIR", help="Its working directory; default: the user's home.")
@click.option("-e", "--env", multiple=True, metavar="VAR=VALUE", help="Set a variable; may be repeated.")
@click.option("--clear-env", is_flag=True, help="Set no other variables than those (and PATH).")
@click.option("--shell", is_flag=True, help="PROGRAM is one string for the guest's /bin/sh -c.")
@click.option("-n", "--no-stdin", is_flag=True, help="It reads nothing: for use in the background.")
@click.option("--merge", is_flag=True, help="Its stderr goes where its stdout goes, in order.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End it after this time: by SIGTERM, and SIGKILL 2 s later.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=N",
    help="Set a limit: cpu (seconds), memory (bytes), files, processes; may be repeated.",
)
@click.option("-d", "--detach", is_flag=True, help="Let it run by itself, and print its id for attach-job.")
@_start_timeout
@json_option("errors, and the id with --detach, as one JSON object")
@session_option()
@click.pass_obj
def exec_(
    invocation: Invocation,
    words: tuple[str | None, list[str]],
    tty: bool,
    user: str | None,
    cwd: str | None,
    env: tuple[str, ...],
    clear_env: bool,
    shell: bool,
    no_stdin: bool,
    merge: bool,
    deadline: float | None,
    limits: tuple[str, ...],
    detach: bool,
    timeout: float,
) -> None:
    name, argv = words
    if detach and tty:
        raise click.UsageError("a detached program has no terminal: leave out --tty or --detach")
    if shell:
        argv = [" ".join(argv)]
    given: dict[str, Any] = {
        "user": user,
        "shell": shell,
        "clear-env": clear_env,
        "merge": merge,
        "deadline": deadline,
        "limits": {key: _number(key, value) for key, value in _pairs(limits, "--limit")} or None,
        "detach": detach,
        **_texts(argv, cwd, dict(_pairs(env, "--env"))),
    }
    with _failures(invocation):
        name = None if name is None else VmName().convert(name, None, None)
        if detach:
            _put_detached(invocation, name, given, timeout)
        else:
            _run(invocation, name, given, terminal=tty, stdin=not no_stdin, timeout=timeout)


@click.command(
    help=f"""Open a login shell in the guest, on this terminal.

    {_STATUS}""",
    epilog=examples("va-host shell demo", "va-host shell demo -u www-data"),
)
@vm_argument()
@_user
@_start_timeout
@session_option()
@click.pass_obj
def shell(invocation: Invocation, name: str | None, user: str | None, timeout: float) -> None:
    given = {"argv": [_LOGIN], "shell": True, "user": user}
    with _failures(invocation):
        _run(invocation, name, given, terminal=True, stdin=True, timeout=timeout)


@click.command(help=TABLE["va_jobs"].help, epilog=examples("va-host jobs demo"))
@vm_argument()
@timeout_option(CALL_TIMEOUT, "How long to wait for the answer.")
@json_option("one JSON object: jobs, an array")
@session_option()
@click.pass_obj
def jobs(invocation: Invocation, name: str | None, timeout: float) -> None:
    result = _call(invocation, name, "va_jobs", {}, timeout)
    if invocation.json:
        put_json(result)
        return
    for job in result["jobs"]:
        put(_line(job))


@click.command(
    name="attach-job",
    help=f"""Write the output of a detached program to stdout and stderr, until it ends.

    Its offsets count from the first byte that it wrote. The guest keeps the last MiB of each; what is lost is
    told on stderr. Ending this command does nothing to the program.

    {_STATUS}""",
    epilog=examples("va-host attach-job demo 3", "va-host attach-job demo 3 --offset 65536 >>log"),
)
@vm_argument()
@click.argument("job", type=click.IntRange(min=1), metavar="ID")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="First byte of stdout.")
@click.option("--stderr-offset", type=click.IntRange(min=0), default=0, help="First byte of stderr.")
@session_option()
@click.pass_obj
def attach_job(invocation: Invocation, name: str | None, job: int, offset: int, stderr_offset: int) -> None:
    from ..frontend.exec import attach

    with _failures(invocation), invocation.connect(name) as client:
        status, found = attach(client, job, offset, stderr_offset)
        lost = [found["offset"] - offset, found.get("stderr-offset", stderr_offset) - stderr_offset]
        missed = sum(max(count, 0) for count in lost) + found["missed"]
        if missed:
            sys.stderr.write(f"{PROGRAM}: {missed} bytes of the output were not kept by the guest\n")
        invocation.status = status


@click.command(help=TABLE["va_job_signal"].help, epilog=examples("va-host kill demo 3 --signal HUP"))
@vm_argument()
@click.argument("job", type=click.IntRange(min=1), metavar="ID")
@click.option("-s", "--signal", default="TERM", show_default=True, help="Such as HUP, KILL or SIGUSR1.")
@timeout_option(CALL_TIMEOUT, "How long to wait for the answer.")
@json_option("errors as one JSON object")
@session_option()
@click.pass_obj
def kill(invocation: Invocation, name: str | None, job: int, signal: str, timeout: float) -> None:
    _call(invocation, name, "va_job_signal", {"id": job, "signal": signal.upper()}, timeout)


def _run(
    invocation: Invocation,
    name: str | None,
    given: dict[str, Any],
    *,
    terminal: bool,
    stdin: bool,
    timeout: float,
) -> None:
    from ..frontend.exec import run

    arguments = {key: value for key, value in given.items() if value is not None}
    with invocation.connect(name) as client:
        invocation.status = run(client, arguments, terminal=terminal, stdin=stdin, timeout=timeout)


def _put_detached(invocation: Invocation, name: str | None, given: dict[str, Any], timeout: float) -> None:
    result = _call(
        invocation,
        name,
        "va_exec",
        {key: value for key, value in given.items() if value is not None},
        timeout,
    )
    if invocation.json:
        put_json(result)
    else:
        put(str(result["id"]))


@contextmanager
def _failures(invocation: Invocation) -> Iterator[None]:
    """Turn what goes wrong into the one exit status that no program's own can be mistaken for easily."""
    from ..frontend.exec import EXIT_FAILED

    try:
        yield
    except VirtagentError as error:
        put_error(error, as_json=invocation.json)
        invocation.status = EXIT_FAILED


def _call(
    invocation: Invocation, name: str | None, command: str, arguments: dict[str, object], timeout: float
) -> Any:
    from ..frontend.fetch import call

    with invocation.connect(name) as client:
        return call(client, command, arguments, timeout)


def _texts(argv: list[str], cwd: str | None, env: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of a process, encoded as base64 if any of them is not UTF-8."""
    texts = [*argv, *([] if cwd is None else [cwd]), *env.values()]
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        import base64
        import os

        def encoded(text: str) -> str:
            return base64.b64encode(os.fsencode(text)).decode("ascii")

        return {
            "argv": [encoded(word) for word in argv],
            "cwd": None if cwd is None else encoded(cwd),
            "env": {key: encoded(value) for key, value in env.items()},
            "encoding": "base64",
        }
    return {"argv": argv, "cwd": cwd, "env": env}


def _pairs(words: tuple[str, ...], option: str) -> Iterator[tuple[str, str]]:
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise click.UsageError(f"{option} needs NAME=VALUE: {word}")
        yield key, value


def _number(key: str, value: str) -> int:
    if not value.isdecimal():
        raise click.UsageError(f"the limit '{key}' must be a number: {value}")
    return int(value)


def _line(job: dict[str, Any]) -> str:
    if job["state"] == "running":
        state = "running"
    elif "code" in job:
        state = f"exit {job['code']}"
    else:
        state = f"signal {job['signal']}"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["started"]))
    detached = "detached" if job["detached"] else "attached"
    return f"{job['id']:>4}  {job['pid']:>7}  {state:<10}  {detached}  {started}  {' '.join(job['argv'])}"


COMMANDS = (exec_, shell, jobs, attach_job, kill)
