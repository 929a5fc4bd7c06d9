"""What a policy may say and yet is likely a mistake: told at each load, and by `va-guest policy check`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from virtagent_protocol.signature import PREFIX

from .rules import ALWAYS, Policy, Rule

_WILDCARD = re.compile(r"[*?]")


def remarks(policy: Policy, methods: Iterable[str]) -> list[str]:
    """Return a line for each thing that is likely a mistake.

    None of them is an error: a list is often made for agents of several versions, and a directory may become
    a link later.

    Args:
        policy: what to look at.
        methods: the names of all methods of this agent.
    """
    known = sorted(ALWAYS.union(methods))
    return [*_unknown_names(policy, known), *(line for rule in policy.rules for line in _links(rule))]


def _unknown_names(policy: Policy, known: list[str]) -> Iterator[str]:
    # Extensions come and go: rules about them may be there first.
    for where, names in (("allow-rpcs", policy.allow or ()), ("block-rpcs", policy.block)):
        for name in sorted(name for name in set(names).difference(known) if not name.startswith(PREFIX)):
            yield f"{where}: this agent has no method '{name}'"
    for rule in policy.rules:
        for glob in rule.methods:
            if not glob.text.startswith(PREFIX) and not any(glob.matches(name) for name in known):
                yield f"rule '{rule.name}': this agent has no method '{glob.text}'"


def _links(rule: Rule) -> Iterator[str]:
    """Paths are resolved before they are compared, so a pattern with a link in it matches nothing."""
    programs = [argv[0] for argv in rule.run or ()]
    for key, globs in (("read", rule.read), ("write", rule.write), ("run", programs)):
        for glob in globs or ():
            directory = os.path.dirname(_WILDCARD.split(glob.text)[0]) or "/"
            resolved = os.path.realpath(directory)
            if resolved != directory:
                where = f"rule '{rule.name}': {key}: '{glob.text}'"
                yield f"{where} matches nothing: {directory} is {resolved}, write that"
