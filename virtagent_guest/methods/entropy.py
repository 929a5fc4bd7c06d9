"""va.reseed: entropy from the host for the kernel's random generator (random(4)).

A guest that is restored twice from one snapshot draws the same numbers twice, until its kernel reseeds
itself. What the host sends is credited: the host could read all of the guest's memory anyway.
"""

from __future__ import annotations

import fcntl
import os
import platform
import struct

from virtagent_protocol.errors import Fault, FaultCode
from virtagent_protocol.registry import Call, Registry

registry = Registry()

DEVICE = "/dev/random"
#: Bytes that are taken at a time: what a generator of 256 bits can use, and not much more.
ENTROPY_MIN, ENTROPY_MAX = 16, 512

#: <linux/random.h>. The first takes struct rand_pool_info: bits to credit, bytes that follow, the bytes.
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
#: Where the numbers of ioctls are made in another way.
_OTHER_NUMBERS = ("alpha", "mips", "parisc", "ppc", "powerpc", "sparc")


@registry.method("va.reseed", inline=True)
async def reseed(call: Call, entropy: bytes) -> None:
    """Mix entropy (16 to 512 bytes) into the kernel's random generator, credit it, and reseed at once."""
    if not ENTROPY_MIN <= len(entropy) <= ENTROPY_MAX:
        given = f"{len(entropy)} bytes of entropy"
        raise Fault(FaultCode.INVALID_PARAMS, f"{given}: give {ENTROPY_MIN} to {ENTROPY_MAX}")
    if platform.machine().startswith(_OTHER_NUMBERS):
        raise Fault(FaultCode.FAILED, f"reseeding is not known on {platform.machine()}")
    try:
        fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _RNDADDENTROPY, pool_info(entropy))
            fcntl.ioctl(fd, _RNDRESEEDCRNG)
        finally:
            os.close(fd)
    except OSError as error:
        # EPERM without CAP_SYS_ADMIN; EINVAL and ENOTTY before Linux 4.14, which has no reseeding.
        raise Fault(FaultCode.FAILED, f"the kernel was not reseeded: {DEVICE}: {error.strerror}") from error


def pool_info(entropy: bytes) -> bytes:
    """Return struct rand_pool_info, with all bits credited."""
    return struct.pack("ii", 8 * len(entropy), len(entropy)) + entropy
