"""Commands that ask about a VM's link, or ask its guest; their words come from the `va_*` table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from virtagent_protocol.errors import NotThere

from ..commands import CALL_TIMEOUT, WAIT_TIMEOUT
from ..commands import COMMANDS as TABLE
from ..frontend.output import put, put_bytes, put_fields, put_json
from .common import (
    Invocation,
    VmName,
    attached_names,
    examples,
    json_option,
    session_option,
    timeout_option,
    vm_argument,
)

#: Seconds between two looks for a va-host that is about to start.
_LOOK_AGAIN = 0.1

_MODES = TABLE["va_shutdown"].argument("shutdown_mode").choices
_STATES = TABLE["va_wait"].argument("until").choices

_call_timeout = timeout_option(CALL_TIMEOUT, "How long to wait for the guest's answer.")


def _help(name: str, *more: str) -> str:
    return "\n\n".join([TABLE[name].help, *more])


@click.command(help=_help("va_status"), epilog=examples("va-host status demo"))
@vm_argument()
@json_option("one JSON object, with the counters and fill levels of the link")
@click.pass_obj
def status(invocation: Invocation, name: str | None) -> None:
    from ..frontend.client import CONNECT_TIMEOUT

    with invocation.connect(name) as client:
        _put_status(invocation, client.execute("va_status", timeout=CONNECT_TIMEOUT))


@click.command(
    help=_help("va_wait", "Waits for va-host itself as well, if it is not there yet."),
    epilog=examples("va-host wait demo --until ready --timeout 90"),
)
@vm_argument()
@click.option(
    "--until", type=click.Choice(_STATES), default="ready", show_default=True, help="The state to wait for."
)
@timeout_option(WAIT_TIMEOUT, "How long to wait in all.")
@json_option("the status then, one JSON object")
@click.pass_obj
def wait(invocation: Invocation, name: str | None, until: str, timeout: float) -> None:
    import time

    from ..frontend.fetch import call

    deadline = time.monotonic() + timeout
    while True:
        try:
            client = invocation.connect(name)
            break
        except NotThere:
            # There is nothing to wait on before the service made its socket, so look again.
            if time.monotonic() + _LOOK_AGAIN > deadline:
                raise
            time.sleep(_LOOK_AGAIN)
    with client:
        left = max(deadline - time.monotonic(), 0)
        _put_status(invocation, call(client, "va_wait", {"until": until}, left))


@click.command(help=_help("va_ping"), epilog=examples("va-host ping demo"))
@vm_argument()
@_call_timeout
@json_option("one JSON object")
@session_option()
@click.pass_obj
def ping(invocation: Invocation, name: str | None, timeout: float) -> None:
    result = _call(invocation, name, "va_ping", timeout)
    if invocation.json:
        put_json(result)
    else:
        put(f"{result['status']} ({result['time_us'] / 1000:.2f} ms)")


@click.command(help=_help("va_capabilities"), epilog=examples("va-host capabilities demo --json"))
@vm_argument()
@_call_timeout
@json_option("one JSON object")
@session_option()
@click.pass_obj
def capabilities(invocation: Invocation, name: str | None, timeout: float) -> None:
    _put_result(invocation, _call(invocation, name, "va_capabilities", timeout))


def _name_and_mode(
    ctx: click.Context, param: click.Parameter, words: tuple[str, ...]
) -> tuple[str | None, str | None]:
    """The last word is MODE if it is one; another word is NAME."""
    mode = words[-1] if words and words[-1] in _MODES else None
    names = words if mode is None else words[:-1]
    if len(names) > 1:
        raise click.UsageError(f"unexpected argument: {names[1]}", ctx)
    return (VmName().convert(names[0], param, ctx) if names else None), mode


def _complete_name_and_mode(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [word for word in (*attached_names(ctx), *_MODES) if word.startswith(incomplete)]


@click.command(
    help=_help(
        "va_shutdown",
        f"MODE is one of {', '.join(_MODES)}. With a deadline it may be left out, and can only be powerdown.",
    ),
    epilog=examples("va-host shutdown demo powerdown", "va-host shutdown demo --deadline 90"),
)
@click.argument(
    "words",
    nargs=-1,
    metavar="[NAME] MODE",
    callback=_name_and_mode,
    shell_complete=_complete_name_and_mode,
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="End the VM within this time: by the agent, else by ACPI, else QEMU is told to quit.",
)
@_call_timeout
@json_option("with a deadline, one JSON object: by, seconds, steps")
@click.pass_obj
def shutdown(
    invocation: Invocation, words: tuple[str | None, str | None], deadline: float | None, timeout: float
) -> None:
    name, mode = words
    if deadline is None:
        if mode is None:
            raise click.UsageError(f"say what to end in: {', '.join(_MODES)}")
        _call(invocation, name, "va_shutdown", timeout, shutdown_mode=mode)
        return
    from ..frontend.client import GRACE

    arguments = {"shutdown_mode": mode or "powerdown", "deadline": deadline}
    with invocation.connect(name) as client:
        result = client.execute("va_shutdown", arguments, timeout=deadline + GRACE)
    if invocation.json:
        put_json(result)
        return
    for step in result["steps"]:
        put(f"{step['means']}: {step['result']} ({step['seconds']:.1f} s)")


@click.command(
    help=_help(
        "va_viewfile",
        "The bytes are written as they are into a pipe or file; on a terminal, control characters are "
        "made visible.",
    ),
    epilog=examples(
        "va-host viewfile demo /proc/meminfo", "va-host viewfile demo /var/log/wtmp --count 4096 >wtmp"
    ),
)
@vm_argument()
@click.argument("path")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="First byte to read.")
@click.option("--count", type=click.IntRange(min=1), help="Bytes to read; default: all that follow.")
@timeout_option(CALL_TIMEOUT, "How long to wait for each part of the file.")
@json_option("one JSON object: filepath, offset, content, format (utf8, or base64 if it is not), count")
@session_option()
@click.pass_obj
def viewfile(
    invocation: Invocation, name: str | None, path: str, offset: int, count: int | None, timeout: float
) -> None:
    from ..frontend.fetch import file_parts

    with invocation.connect(name) as client:
        parts = file_parts(client, path, offset=offset, count=count, timeout=timeout)
        _put_content(invocation, parts, {"filepath": path, "offset": offset})


@click.command(help=_help("va_viewdmesg"), epilog=examples("va-host viewdmesg demo | tail"))
@vm_argument()
@_call_timeout
@json_option("one JSON object: content, format (utf8, or base64 if it is not), count")
@click.pass_obj
def viewdmesg(invocation: Invocation, name: str | None, timeout: float) -> None:
    from ..frontend.fetch import dmesg

    with invocation.connect(name) as client:
        _put_content(invocation, iter([dmesg(client, timeout=timeout)]), {})


def _call(invocation: Invocation, name: str | None, command: str, timeout: float, **arguments: object) -> Any:
    from ..frontend.fetch import call

    with invocation.connect(name) as client:
        return call(client, command, arguments, timeout)


def _put_result(invocation: Invocation, result: Any) -> None:
    if invocation.json:
        put_json(result)
    else:
        put_fields(result)


def _put_status(invocation: Invocation, status: dict[str, Any]) -> None:
    if not invocation.json:
        # A page of counters is for programs, and for those who ask for it.
        status.pop("figures", None)
    _put_result(invocation, status)


def _put_content(invocation: Invocation, parts: Iterator[bytes], about: dict[str, object]) -> None:
    if not invocation.json:
        put_bytes(parts)
        return
    data = b"".join(parts)
    try:
        content, form = data.decode(), "utf8"
    except UnicodeDecodeError:
        import base64

        content, form = base64.b64encode(data).decode("ascii"), "base64"
    put_json({**about, "content": content, "format": form, "count": len(data)})


COMMANDS = (status, wait, ping, capabilities, shutdown, viewfile, viewdmesg)
