"""`va-host doctor`: what keeps a VM's calls from working."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virtagent_protocol.errors import EXIT_STATUS

from ..frontend.output import PROGRAM, put_coloured, put_json
from .common import Invocation, examples, json_option, vm_argument

if TYPE_CHECKING:
    from ..doctor.diagnosis import Finding

#: Mark and its SGR code: green, red, and as the text.
_MARKS = {True: ("✓", "32"), False: ("✗", "31"), None: ("–", "")}  # noqa: RUF001 - a dash is meant


@click.command(
    epilog=examples("va-host doctor demo", "va-host doctor --qmp /run/vm/demo.sock --json"),
)
@vm_argument()
@click.option(
    "--qmp",
    metavar="SOCKET",
    # Whether it may be used is what the doctor is asked, and not for click to refuse.
    type=click.Path(path_type=Path, readable=False),
    help="Look at QEMU itself, by its QMP socket: for a VM that no va-host serves.",
)
@json_option(
    "one JSON array of objects: check, holds (true, false, or null: not seen), finding, remedy (or null)"
)
@click.pass_obj
def doctor(invocation: Invocation, name: str | None, qmp: Path | None) -> None:
    """Say what keeps a VM's calls from working, and what to do about it.

    Walks the way of a call: monitor, controller, chardev, port, the guest's run state, its driver, the opened
    port, agent, session, the guest's policy. What comes after the first that does not hold is not looked at.
    Nothing is changed.

    The exit status is 0 if nothing fails, else that of the failure.
    """
    if name is not None and qmp is not None:
        raise click.UsageError("give one of NAME and --qmp SOCKET")

    from ..doctor.diagnosis import diagnose
    from ..doctor.symptoms import look_at_qemu, look_at_vm

    directory = invocation.runtime_dir
    va_host = PROGRAM if directory is None else f"{PROGRAM} --runtime-dir {shlex.quote(directory)}"
    if qmp is not None:
        # A socket is found in the kernel's list, and a remedy works elsewhere, by the whole path only.
        facts = look_at_qemu(invocation.runtime, qmp.absolute(), va_host)
    else:
        facts = look_at_vm(invocation.runtime, invocation.choose(name), va_host)
    findings = diagnose(facts)
    if invocation.json:
        put_json([_row(check, finding) for check, finding in findings])
    else:
        for check, finding in findings:
            _put(check, finding)
    for _, finding in findings:
        if finding.kind is not None:
            invocation.status = EXIT_STATUS[finding.kind]


def _row(check: str, finding: Finding) -> dict[str, object]:
    return {"check": check, "holds": finding.holds, "finding": finding.text, "remedy": finding.remedy or None}


def _put(check: str, finding: Finding) -> None:
    put_coloured([_MARKS[finding.holds], f" {check:10}  {finding.text}"])
    for line in finding.remedy.splitlines():
        put_coloured(["    ", (line, "1")])


COMMANDS = (doctor,)
