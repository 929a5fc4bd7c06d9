"""The policy at work: that of one VM, replaced as a whole by SIGHUP.

One that cannot be loaded again leaves the one before in force.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from virtagent_protocol.nursery import plain_nursery

from .file import PolicyError, ServicesDir, load_policy
from .rules import Policy

log = logging.getLogger("virtagent.services")


class ServicesGuard:
    """Holds the policy that is in force for a VM.

    Args:
        vm: its name.
        directory: of the services.

    Attributes:
        policy: what is in force.

    Raises:
        PolicyError: the first cannot be loaded.
    """

    def __init__(self, vm: str, directory: ServicesDir) -> None:
        self.vm = vm
        self.directory = directory
        self.policy: Policy = load_policy(directory, vm)
        self._tell()

    def reload(self) -> None:
        """Load the policy again; if that fails, say so and keep the one in force."""
        try:
            self.policy = load_policy(self.directory, self.vm)
        except PolicyError as error:
            log.error("the services' policy was not loaded again, that of before stays in force: %s", error)
        else:
            self._tell()

    def _tell(self) -> None:
        if self.policy.files:
            files = " and ".join(self.policy.files)
            log.info("%s: services for the guest: %d rules of %s", self.vm, len(self.policy.rules), files)

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Load it again at each SIGHUP during the block."""
        async with plain_nursery() as nursery:
            await nursery.start(self._reload_on_signal)
            yield
            nursery.cancel_scope.cancel()

    async def _reload_on_signal(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                log.info("SIGHUP: loading the services' policy again")
                # A file system that hangs is to hold up nothing else.
                await trio.to_thread.run_sync(self.reload, abandon_on_cancel=True)
