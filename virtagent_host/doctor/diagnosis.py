"""What is wrong with a virtagent channel, and what to do about it: the judgement behind `va-host doctor`.

The rules:

1. The way of a message is walked from the host to the agent, one check for each thing that it needs. Each
   check looks at the same `Facts`, does no I/O, and says whether its thing holds.
2. Only the first that does not hold is the trouble, with a remedy; what comes after it is not looked at. So a
   check may rely on all before it.
3. A thing that cannot be seen from here neither holds nor fails. It is said why, and the walk goes on.
4. A failure has a kind, as every failure of virtagent; the exit status follows from it.
5. A remedy is lines to be copied. What is to be done in the guest begins with ``in the guest:``.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from virtagent_protocol.errors import FailureKind

from ..qemu.devices import CHARDEV_ID, COLD_PLUG, PORT_NAME
from . import remedies
from .symptoms import Chardev, Facts, Qemu

#: qemu-ga's own port. It is found beside ours in most VMs, and in place of it where somebody mixed them up.
QEMU_GA = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        holds: True, False, or None where it cannot be seen.
        text: one sentence.
        remedy: what to do about it: lines to be copied; "" for nothing.
        kind: of a failure.
    """

    holds: bool | None
    text: str
    remedy: str = ""
    kind: FailureKind | None = None


Check = Callable[[Facts], Finding]


def diagnose(facts: Facts) -> list[tuple[str, Finding]]:
    """Return the name and finding of every check, in the order of the walk."""
    findings: list[tuple[str, Finding]] = []
    failed = False
    for name, check in CHECKS.items():
        finding = _unseen("not looked at") if failed else check(facts)
        failed = failed or finding.holds is False
        findings.append((name, finding))
    return findings


def _holds(text: str) -> Finding:
    return Finding(True, text)


def _unseen(text: str, remedy: str = "") -> Finding:
    return Finding(None, text, remedy)


def _fails(kind: FailureKind, text: str, *remedy: str) -> Finding:
    return Finding(False, text, "\n".join(remedy), kind)


# --- The checks, in their order ----------------------------------------------------------------------


def _monitor(facts: Facts) -> Finding:
    error = facts.unreachable
    if error is None:
        qemu = f"QEMU {facts.qemu.version}" if facts.qemu else "no QEMU (attached without --qmp)"
        service = f"va-host '{facts.name}' (pid {facts.service_pid}) and " if facts.name else ""
        return _holds(f"{facts.monitor}: {service}{qemu}")
    monitor = shlex.quote(os.fspath(facts.monitor))
    if error.kind is FailureKind.FORBIDDEN:
        return _fails(error.kind, str(error), f"ls -l {monitor}", f"sudo {remedies.va_host(facts, 'doctor')}")
    if facts.status is not None:
        return _fails(error.kind, str(error), "start QEMU: va-host attaches to it by itself")
    if facts.name:
        return _fails(error.kind, str(error), *remedies.serve(facts))
    if facts.holder_name:
        return _fails(error.kind, f"{error}{_held(facts)}", f"{facts.va_host} doctor {facts.holder_name}")
    if error.kind is FailureKind.NOT_READY:
        return _fails(error.kind, f"{error}{_held(facts)}", f"ss -xp | grep -F {monitor}  # who has it")
    return _fails(error.kind, str(error), f"start QEMU with: -qmp unix:{monitor},server=on,wait=off")


def _controller(facts: Facts) -> Finding:
    if facts.qemu is None:
        return _no_qemu()
    if facts.qemu.has_controller:
        return _holds("there is a virtio-serial controller")
    kind, text = FailureKind.NOT_THERE, "there is no virtio-serial controller"
    if facts.qemu.takes_controller:
        return _fails(kind, f"{text} yet; va-host attach plugs one in", *remedies.attach(facts))
    cold = f"start QEMU with: {COLD_PLUG}"
    if facts.qemu.takes_controller is False:
        return _fails(kind, f"{text}, and this machine takes none while it runs", cold)
    return _fails(kind, text, *remedies.attach(facts), f"if that cannot plug one in, {cold}")


def _chardev(facts: Facts) -> Finding:
    qemu = facts.qemu
    if qemu is not None:
        chardev = qemu.chardev
        if qemu.port and chardev is None:
            remedy = [*remedies.unplug(facts, qemu.port), *remedies.attach(facts)]
            return _fails(FailureKind.NOT_THERE, f"port {qemu.port.name} has no chardev", *remedy)
        if chardev is None:
            text = f"there is no chardev '{CHARDEV_ID}' and no port {PORT_NAME}{_others(qemu)}"
            return _fails(FailureKind.NOT_THERE, text, *remedies.attach(facts))
        if chardev.path is None:
            text = f"chardev '{chardev.label}' is '{chardev.filename}', not a listening unix socket"
            cold = f"start QEMU with: -chardev socket,id={chardev.label},path=PATH,server=on,wait=off"
            return _fails(FailureKind.NOT_THERE, text, cold)
        if not chardev.connected:
            return _free_chardev(facts, chardev)
        if not facts.name and not facts.holder_name:
            text = f"another program is connected to chardev '{chardev.label}' ({chardev.path}){_held(facts)}"
            return _fails(FailureKind.NOT_READY, text, *remedies.end_holder(facts))
    return _own_connection(facts)


def _free_chardev(facts: Facts, chardev: Chardev) -> Finding:
    where = f"chardev '{chardev.label}' ({chardev.path})"
    if facts.obstacle is not None:
        return _obstructed(facts, f"cannot connect to {where}: {facts.obstacle.strerror}", facts.obstacle)
    if facts.status is None:
        return _holds(f"{where} is free")
    text = f"va-host is not connected to {where}: {facts.status['reason']}"
    if os.strerror(errno.EACCES) in text:  # of a service that runs as another user
        return _obstructed(facts, text, PermissionError(errno.EACCES, ""))
    return _fails(FailureKind.NOT_READY, text, *remedies.attach(facts))


def _own_connection(facts: Facts) -> Finding:
    """Whether it is the va-host in question that has the channel; QEMU alone cannot tell."""
    if facts.holder and facts.name and facts.service_pid not in (None, facts.holder.pid):
        text = f"another program is connected to {facts.channel}{_held(facts)}; va-host waits for its turn"
        return _fails(FailureKind.NOT_READY, text, *remedies.end_holder(facts))
    if facts.qemu is None and facts.status is not None and facts.status["state"] == "no-port":
        return _obstructed(facts, facts.status["reason"], facts.obstacle)
    return _holds(f"connected to {facts.channel}{_held(facts)}")


def _port(facts: Facts) -> Finding:
    qemu = facts.qemu
    if qemu is None:
        return _no_qemu()
    if qemu.port is not None:
        label = f" (id '{qemu.port.id}')" if qemu.port.id else ""
        return _holds(f"{qemu.port.name}{label}")
    wrong = next((port for port in qemu.ports if port.chardev == CHARDEV_ID), None)
    if wrong is None:
        text = f"there is no port {PORT_NAME}{_others(qemu)}"
        return _fails(FailureKind.NOT_THERE, text, *remedies.attach(facts))
    text = f"the port of chardev '{CHARDEV_ID}' is called '{wrong.name}', not {PORT_NAME}"
    if wrong.name == QEMU_GA:
        text += ": that one is qemu-ga's, which needs a chardev of its own"
    return _fails(FailureKind.NOT_THERE, text, *remedies.unplug(facts, wrong), *remedies.attach(facts))


_STOPPED = {
    "suspended": (FailureKind.NOT_READY, "system_wakeup"),
    "io-error": (FailureKind.NOT_READY, "cont"),
    "guest-panicked": (FailureKind.BROKEN, "system_reset"),
    "internal-error": (FailureKind.BROKEN, "system_reset"),
    "shutdown": (FailureKind.BROKEN, "system_reset"),
}
#: QEMU goes on by itself, or must not: the guest runs elsewhere.
_MIGRATING = ("inmigrate", "finish-migrate", "postmigrate", "save-vm", "restore-vm", "colo")


def _running(facts: Facts) -> Finding:
    if facts.qemu is None:
        return _no_qemu()
    state = facts.qemu.run_state
    if state == "running":
        return _holds("the guest's CPUs run")
    text = f"the guest is stopped: QEMU is in state '{state}'"
    if state in _MIGRATING:
        return _fails(FailureKind.NOT_READY, text, remedies.qmp(facts, "query-migrate"))
    kind, command = _STOPPED.get(state, (FailureKind.NOT_READY, "cont"))
    return _fails(kind, text, remedies.qmp(facts, command))


def _driver(facts: Facts) -> Finding:
    qemu = facts.qemu
    if qemu is None:
        return _no_qemu()
    assert qemu.port is not None
    if qemu.is_open(qemu.port) or (qemu.driver and "DRIVER_OK" in qemu.driver):
        return _holds("virtio_console drives the controller")
    if qemu.driver is None:
        return _unseen("only QEMU 7.2 or later can tell")
    if "FAILED" in qemu.driver:
        return _fails(
            FailureKind.BROKEN, "the guest's driver has given the controller up", remedies.GUEST_LOG
        )
    if not qemu.driver:
        return _fails(
            FailureKind.NOT_READY,
            "the guest has not touched the controller: it has not booted so far, or has no virtio driver",
            remedies.LOAD_ALL,
        )
    return _fails(
        FailureKind.NOT_READY,
        "the guest has found the controller, but no virtio_console driver drives it",
        remedies.LOAD_DRIVER,
    )


def _opened(facts: Facts) -> Finding:
    if facts.qemu is None:
        return _no_qemu()
    port = facts.qemu.port
    assert port is not None
    if facts.qemu.is_open(port):
        return _holds("a program in the guest has opened the port")
    driver = "" if facts.qemu.driver else ", or no virtio_console driver is there"
    return _fails(
        FailureKind.NOT_READY,
        f"nobody in the guest has opened the port: no agent is installed, or udev did not start it{driver}",
        *remedies.start_agent(port.name),
    )


def _agent(facts: Facts) -> Finding:
    status = facts.status
    if status is None:
        if facts.holder_name:
            return _unseen("only its va-host can tell", f"{facts.va_host} doctor {facts.holder_name}")
        return _unseen("nobody has asked it: no va-host is attached", "\n".join(remedies.attach(facts)))
    figures = status["figures"]
    if status["state"] in ("ready", "frozen"):
        return _holds(status["agent"])
    if figures["refusal"]:
        return _holds("an agent answers")
    if not figures["sessions"] and (drops := sum(figures["drops"].values())):
        return _fails(
            FailureKind.BROKEN,
            f"what answers is not va-guest, {drops} of its messages made no sense: is it qemu-ga's port?",
            remedies.WHO_HAS_PORTS,
            *remedies.RESTART_AGENT,
        )
    return _fails(FailureKind.NOT_READY, f"no agent answers: {status['reason']}", *remedies.RESTART_AGENT)


def _session(facts: Facts) -> Finding:
    status = facts.status
    if status is None:
        return _unseen("only a va-host can have one")
    if status["figures"]["refusal"]:
        return _fails(FailureKind.BROKEN, status["figures"]["refusal"], *remedies.VERSIONS)
    return _holds(f"{status['session']}, protocol {status['protocol']}")


#: What an agent answers though a policy forbids all else (SPEC.md section 10).
_ALWAYS = re.compile(r"va\.(hello|ping|capabilities)$|system\.")


def _policy(facts: Facts) -> Finding:
    answer = facts.capabilities
    if answer is None:
        return _unseen("only the agent can tell, and it was not asked or did not answer")
    if "forbidden" not in answer:
        return _holds("the guest has no policy: all calls are allowed")
    forbidden = answer["forbidden"]
    callable_ = [m for m in answer["methods"] if m not in forbidden and not _ALWAYS.match(m)]
    if not callable_:
        text = "the guest's policy forbids every call; it answers to ping alone"
        return _fails(FailureKind.FORBIDDEN, text, *remedies.POLICY)
    some = f": {', '.join(forbidden[:_NAMED])}{' …' if len(forbidden) > _NAMED else ''}" if forbidden else ""
    share = f"{len(forbidden)} of {len(answer['methods'])} methods"
    text = f"the guest has a policy; it forbids {share} altogether{some}"
    return _holds(f"{text}. Of the others it may forbid calls, too")


#: Forbidden methods that are named; a list of all is what `va-host capabilities` is for.
_NAMED = 5

#: The walk. To add a thing that may fail, add its check at its place.
CHECKS: dict[str, Check] = {
    "monitor": _monitor,
    "controller": _controller,
    "chardev": _chardev,
    "port": _port,
    "running": _running,
    "driver": _driver,
    "opened": _opened,
    "agent": _agent,
    "session": _session,
    "policy": _policy,
}


# --- Words that several checks use ---------------------------------------------------------------------


def _no_qemu() -> Finding:
    return _unseen("only QEMU can tell, and va-host is attached without QMP")


def _others(qemu: Qemu) -> str:
    if not qemu.ports:
        return ""
    names = ", ".join(f"'{port.name}'" for port in qemu.ports)
    if QEMU_GA in (port.name for port in qemu.ports):
        return f" (there is {names}; {QEMU_GA} is qemu-ga's, not ours: leave it as it is)"
    return f" (there is {names})"


def _held(facts: Facts) -> str:
    if facts.holder is None or facts.holder.pid == facts.service_pid:
        return ""
    if facts.holder_name:
        return f": va-host '{facts.holder_name}' (pid {facts.holder.pid})"
    return f": pid {facts.holder.pid} ({facts.holder.command})"


def _obstructed(facts: Facts, text: str, obstacle: OSError | None) -> Finding:
    """What keeps va-host from connecting to the channel."""
    look = f"ls -ld {shlex.quote(os.fspath(facts.channel or ''))}"
    if isinstance(obstacle, PermissionError):
        return _fails(FailureKind.FORBIDDEN, text, f"{look}  # run va-host as its owner, or as root")
    qemu = facts.qemu
    if qemu is None or qemu.chardev is None:
        return _fails(FailureKind.NOT_THERE, text, look)
    # QEMU still listens on a file that was removed, or that is seen under its path by QEMU alone.
    unplug = remedies.unplug(facts, qemu.port) if qemu.port else []
    remove = remedies.qmp(facts, f"chardev-remove id={qemu.chardev.label}")
    return _fails(FailureKind.NOT_THERE, text, look, *unplug, remove, *remedies.attach(facts))
