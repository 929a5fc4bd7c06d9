"""Errors on their way through a QMP monitor: QEMU's to us, ours to QMP clients.

QMP knows five error classes (QapiErrorClass in qapi/error.json), and clients only ever compare two or three
of them. So the class says what fits, and the description begins with the kind of failure, the word that
virtagent's users act on: ``not ready: no agent has ever opened the port``. QEMU's own errors pass unchanged.
"""

from __future__ import annotations

from enum import Enum

from virtagent_protocol.errors import FailureKind, VirtagentError


class ErrorClass(str, Enum):
    """QapiErrorClass of qapi/error.json, less the one about KVM."""

    GENERIC_ERROR = "GenericError"
    COMMAND_NOT_FOUND = "CommandNotFound"
    DEVICE_NOT_ACTIVE = "DeviceNotActive"
    DEVICE_NOT_FOUND = "DeviceNotFound"


_CLASS_OF_KIND = {
    FailureKind.NOT_THERE: ErrorClass.DEVICE_NOT_FOUND,
    FailureKind.NOT_READY: ErrorClass.DEVICE_NOT_ACTIVE,
}


class QemuError(VirtagentError):
    """A QMP command was answered with an error.

    Args:
        error_class: one of QapiErrorClass.
        desc: its description, for people; never parse it.
    """

    kind = FailureKind.REFUSED

    def __init__(self, error_class: str, desc: str) -> None:
        super().__init__(desc)
        self.error_class = error_class
        self.desc = desc


def to_qmp(error: VirtagentError) -> QemuError:
    """Return *error* as the QMP error that tells it to a client."""
    if isinstance(error, QemuError):
        return error
    error_class = _CLASS_OF_KIND.get(error.kind, ErrorClass.GENERIC_ERROR)
    return QemuError(error_class.value, f"{error.kind.value}: {error}")
