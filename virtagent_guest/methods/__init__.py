"""The methods that the agent offers to the host: one module per topic, each with its own `registry`.

`va.ping`, `va.hello`, `va.capabilities` and `system.*` are not here: the link answers them itself.
"""

from __future__ import annotations

from virtagent_protocol.registry import Registry

from . import directories, dmesg, entropy, exec, files, forward, freeze, power, qga, trees


def all_methods() -> Registry:
    """Return a new registry with every method of the agent."""
    methods = Registry()
    for topic in (power, files, trees, directories, dmesg, exec, freeze, qga, forward, entropy):
        methods.include(topic.registry)
    return methods
