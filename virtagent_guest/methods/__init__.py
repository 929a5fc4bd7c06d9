"""The methods that the agent offers to the host: one module per topic, each with its own `registry`.

`va.ping`, `va.hello`, `va.capabilities` and `system.*` are not here: the link answers them itself.
"""

from __future__ import annotations

from virtagent_protocol.registry import Registry

from ..extensions.table import EXTENSIONS
from ..session.clipboard_settings import METHODS as CLIPBOARD_METHODS
from . import directories, dmesg, entropy, exec, files, forward, freeze, power, qga, sessions, stats, trees


def all_methods() -> Registry:
    """Return a new registry with every method of the agent."""
    methods = Registry()
    for topic in (
        power,
        files,
        trees,
        directories,
        dmesg,
        exec,
        freeze,
        qga,
        forward,
        entropy,
        stats,
        sessions,
    ):
        methods.include(topic.registry)
    methods.offer(EXTENSIONS.methods)
    return methods


def all_names() -> list[str]:
    """Return the names of all methods that a policy can speak of: those of the agents of sessions, too."""
    return sorted({*all_methods().names(), *CLIPBOARD_METHODS})
