"""Renewing the lease of a frozen guest: the heartbeat without which it thaws by itself.

It is renewed as long as this service runs and the link holds, whoever has asked for the freeze: `va-host
freeze` has ended long before the snapshot is made. That it does not last for ever is due to its duration,
which nobody can renew. A service that is started anew goes on renewing what it finds frozen.
"""

from __future__ import annotations

import logging

import trio

from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.linkstate import LinkState, Status
from virtagent_protocol.values import as_struct, member

from .guestlink import GuestLink

log = logging.getLogger("virtagent.host")

#: Renewals in the time of one lease: two of them may be lost.
RENEWALS = 3
#: Seconds between two renewals, at least: the guest says how long its lease is.
INTERVAL_MIN = 0.3
#: Seconds for the guest to say it.
ANSWER_TIMEOUT = 10.0


async def renew_leases(name: str, link: GuestLink) -> None:
    """Renew the lease whenever the guest is frozen, until cancelled.

    Args:
        name: the VM's, for the log.
        link: to its agent.
    """
    while True:
        await link.wait_for(_is_frozen)
        try:
            await _renew(link)
        except VirtagentError as error:
            # It may have thawed, or the link is down: either way this freeze is not ours to keep.
            log.info("%s: the lease of the freeze was not renewed: %s", name, error)
        await link.wait_for(lambda status: not _is_frozen(status))


async def _renew(link: GuestLink) -> None:
    lease = 0.0
    with trio.move_on_after(ANSWER_TIMEOUT):
        answer = as_struct(await link.call("va.freeze_status"), "the answer to va.freeze_status")
        lease = member(answer, "lease", float, 0.0)
    while lease > 0 and _is_frozen(link.status):
        interval = max(lease / RENEWALS, INTERVAL_MIN)
        with trio.move_on_after(interval):
            await link.call("va.renew_freeze")
        with trio.move_on_after(interval):
            await link.wait_for(lambda status: not _is_frozen(status))


def _is_frozen(status: Status) -> bool:
    return status.state is LinkState.FROZEN
