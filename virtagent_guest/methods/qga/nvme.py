"""The health of an NVMe disk: its SMART log (NVM Express Base Specification, "SMART / Health
Information")."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from virtagent_protocol.values import Struct

#: linux/nvme_ioctl.h: _IOWR('N', 0x41, struct nvme_admin_cmd)
_ADMIN_CMD = 0xC0484E41
_COMMAND = struct.Struct("=BBHIIIQQIIIIIIIIII")
_GET_LOG_PAGE, _SMART = 0x02, 0x02
#: All name spaces.
_BROADCAST = 0xFFFFFFFF
#: Reading the log must not acknowledge what it reports.
_RETAIN_EVENT = 1 << 15
_LOG_SIZE = 512

#: Offset of each 128-bit counter in the log.
_COUNTERS = {
    "data-units-read": 32,
    "data-units-written": 48,
    "host-read-commands": 64,
    "host-write-commands": 80,
    "controller-busy-time": 96,
    "power-cycles": 112,
    "power-on-hours": 128,
    "unsafe-shutdowns": 144,
    "media-errors": 160,
    "number-of-error-log-entries": 176,
}


def smart_log(dev: str) -> Struct | None:
    """Return the schema's GuestNVMeSmart of a disk; None if it does not tell."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    dwords = (_LOG_SIZE // 4 - 1) << 16
    address = ctypes.addressof(log)
    command = bytearray(
        _COMMAND.pack(
            *(_GET_LOG_PAGE, 0, 0, _BROADCAST, 0, 0, 0, address, 0, _LOG_SIZE),
            *(_SMART | _RETAIN_EVENT | dwords, 0, 0, 0, 0, 0, 0, 0),
        )
    )
    try:
        fd = os.open(dev, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if fcntl.ioctl(fd, _ADMIN_CMD, command):
            return None
    except OSError:
        return None
    finally:
        os.close(fd)
    return read_log(log.raw)


def read_log(log: bytes) -> Struct:
    """Read a SMART log."""
    warning, temperature, spare, threshold, used = struct.unpack_from("<BHBBB", log)
    result: Struct = {
        "critical-warning": warning,
        "temperature": temperature,
        "available-spare": spare,
        "available-spare-threshold": threshold,
        "percentage-used": used,
    }
    for name, offset in _COUNTERS.items():
        result[f"{name}-lo"], result[f"{name}-hi"] = struct.unpack_from("<QQ", log, offset)
    return result
