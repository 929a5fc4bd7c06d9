"""What a session agent offers: topics of the agent that make sense for a user, done with the user's rights.

They are the very modules that serve the host in the agent; only the process is another, and so its user, its
groups, its environment with $DISPLAY and $DBUS_SESSION_BUS_ADDRESS. What is the machine's business (power,
the kernel's log, freezing, forwarding) is not among them, nor is ``guest.*``, whose clients know nothing of
sessions.

A topic of its own is a module with a `registry`, added to `TOPICS`; a `Service` is what it has running.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from virtagent_protocol.registry import Registry

from ..jobs.table import JOBS
from ..methods import directories, exec, files, trees
from . import clipboard

#: One registry each.
TOPICS: tuple[Registry, ...] = tuple(topic.registry for topic in (exec, files, trees, directories, clipboard))

#: Runs as long as the session agent does, and is told to begin by ``nursery.start``.
Service = Callable[..., Awaitable[object]]
SERVICES: tuple[Service, ...] = (JOBS.run, clipboard.CLIPBOARD.run)


def session_methods() -> Registry:
    """Return a new registry with every method of a session agent."""
    methods = Registry()
    for topic in TOPICS:
        methods.include(topic)
    return methods


async def run_services(nursery: trio.Nursery) -> None:
    """Start what the topics have running."""
    for service in SERVICES:
        await nursery.start(service)
