"""Patterns of policies: ``*`` and ``?``, and ``**`` where ``*`` stops at a slash. All else stands for itself.

Matching goes through the text once and keeps every state that is possible so far: a time proportional to both
lengths. A regular expression may take far longer, and the text is the other end's choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKENS = re.compile(r"\*\*+|.", re.DOTALL)


@dataclass(frozen=True)
class Glob:
    """A pattern for text.

    Attributes:
        text: as written.
        path: whether ``*`` and ``?`` stop at a slash.
    """

    text: str
    path: bool = False

    def matches(self, text: str) -> bool:
        """Whether the pattern matches all of *text*."""
        tokens: list[str] = _TOKENS.findall(self.text)
        return len(tokens) in self._states(tokens, text)

    def may_match_below(self, path: str) -> bool:
        """Whether the pattern matches any path below this one, be it there or not."""
        # Whatever state is left, some text leads from it to the end.
        tokens: list[str] = _TOKENS.findall(self.text)
        return any(state < len(tokens) for state in self._states(tokens, f"{path.rstrip('/')}/"))

    def _states(self, tokens: list[str], text: str) -> set[int]:
        """Return the states after *text*, from which nothing, or more text, leads to the end."""
        states = _skip_stars(tokens, {0})
        for character in text:
            within = character != "/" or not self.path
            states = _skip_stars(tokens, {n for s in states for n in _step(tokens, s, character, within)})
            if not states:
                break
        return states


def _step(tokens: list[str], state: int, character: str, within: bool) -> list[int]:
    """Return the states after one more character; *within*: it is not a slash that ends a part of a path."""
    if state == len(tokens):
        return []
    token = tokens[state]
    if token.startswith("**") or (token == "*" and within):
        return [state]
    return [state + 1] if token == character or (token == "?" and within) else []


def _skip_stars(tokens: list[str], states: set[int]) -> set[int]:
    """Add what is reached by letting stars match nothing."""
    for state in list(states):
        while state < len(tokens) and tokens[state].startswith("*"):
            state += 1
            states.add(state)
    return states
