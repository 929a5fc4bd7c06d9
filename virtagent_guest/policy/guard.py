"""The policy at work: one for the whole agent, in front of every call, replaced as a whole by SIGHUP.

A policy that cannot be loaded again leaves the one before in force.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio

from virtagent_protocol.registry import Gate
from virtagent_protocol.values import Value

from ..config import ConfigError
from .remarks import remarks
from .rules import Policy
from .subject import Arguments

log = logging.getLogger("virtagent.policy")


class Guard:
    """Holds the policy that is in force.

    Args:
        policy: the first.
        load: returns the next; raises ConfigError.
        methods: names of all methods of this agent, to find misspelt ones.

    Attributes:
        policy: what is in force.
    """

    def __init__(self, policy: Policy, load: Callable[[], Policy], methods: Iterable[str]) -> None:
        self._load = load
        self._methods = list(methods)
        self.policy = policy
        if policy.in_force:
            self._tell()

    def _tell(self) -> None:
        for line in remarks(self.policy, self._methods):
            log.warning("policy: %s", line)
        log.info("policy: %s", describe(self.policy))

    def reload(self) -> None:
        """Load the policy again; if that fails, say so and keep the one in force."""
        try:
            self.policy = self._load()
        except ConfigError as error:
            log.error("the policy was not loaded again, that of before stays in force: %s", error)
        else:
            self._tell()

    def check(self, method: str, arguments: Arguments, origin: str) -> None:
        """Let a call pass, or refuse it; may block on the file system (see `Policy.check`)."""
        self.policy.check(method, arguments, origin)

    async def admit(self, method: str, arguments: Arguments, origin: str) -> None:
        """As `check`, and a file system that hangs does not hold up anything but this call."""
        policy = self.policy
        if policy.depends_on_arguments(method, origin):
            await trio.to_thread.run_sync(policy.check, method, arguments, origin, abandon_on_cancel=True)
        else:
            policy.check(method, arguments, origin)

    def gate(self, origin: str) -> Gate:
        """Return the gate for a registry whose calls come from there."""
        return _GuardedGate(self, origin)


class _GuardedGate(Gate):
    def __init__(self, guard: Guard, origin: str) -> None:
        self._guard = guard
        self._origin = origin

    async def admit(self, method: str, params: list[Value]) -> None:
        await self._guard.admit(method, params, self._origin)

    def passes(self, method: str) -> bool:
        return not self._guard.policy.in_force

    def forbidden(self, methods: list[str]) -> list[str] | None:
        policy = self._guard.policy
        if not policy.in_force:
            return None
        return [method for method in methods if policy.forbids(method, self._origin)]


def describe(policy: Policy) -> str:
    """Say in a line what is in force."""
    parts = []
    if policy.allow is not None:
        parts.append(f"an allow list of {len(policy.allow)}")
    if policy.block:
        parts.append(f"a block list of {len(policy.block)}")
    if policy.file is not None:
        default = "allow" if policy.default else "deny"
        parts.append(f"{len(policy.rules)} rules of {policy.file}, default {default}")
    return ", ".join(parts) or "none: everything is allowed"
