"""The file of rules: TOML → `Policy`, or an error that says where and what.

A file that is not wholly understood is not used at all: a misspelt condition that is silently left out would
allow what its writer meant to forbid.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from ..config import ConfigError
from .names import Glob, canonical
from .rules import ALWAYS, ORIGINS, Policy, Rule
from .settings import DEFAULT_FILE, PolicySettings
from .subject import SUBJECTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

#: Rules in a file. Each call is held against all of them.
RULES_MAX = 1000

_ACTIONS = {"allow": True, "deny": False}
_RULE_KEYS = ("name", "action", "methods", "origin", "read", "write", "run", "env", "user", "address")
_RULE_HEADER = re.compile(r"(?m)^[ \t]*\[\[[ \t]*rule[ \t]*\]\]")
#: Names of decisions that are no rule's.
_RESERVED = ("default", "always", "no policy", "allow-rpcs", "block-rpcs")


class PolicyError(ConfigError):
    """The file makes no sense; the message names it, and the line or the rule and its key."""


def load_policy(settings: PolicySettings) -> Policy:
    """Return the policy that is set.

    Raises:
        PolicyError: its file cannot be read, or is wrong.
    """
    name = DEFAULT_FILE if settings.file is None else settings.file
    lists = Policy(
        allow=None if settings.allow is None else frozenset(map(canonical, settings.allow)),
        block=frozenset(map(canonical, settings.block)),
    )
    if settings.file is None and not os.path.lexists(name):
        return lists
    rules, default = read_rules(name)
    return Policy(lists.allow, lists.block, rules, default, name)


def read_rules(name: str) -> tuple[tuple[Rule, ...], bool]:
    """Return the rules of a file, and whether it allows what none matches.

    Raises:
        PolicyError: it cannot be read, or is wrong.
    """
    try:
        with open(name, "rb") as opened:
            text = opened.read().decode()
    except OSError as error:
        raise PolicyError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{name} is not UTF-8: {error}") from error
    try:
        # It tells line and column of what it does not understand.
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{name} is not TOML: {error}") from error
    return _Parser(name, text).document(document)


class _Parser:
    """Turns one document into rules; every message begins with the file's name."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._lines = [text.count("\n", 0, match.start()) + 1 for match in _RULE_HEADER.finditer(text)]

    def document(self, document: dict[str, Any]) -> tuple[tuple[Rule, ...], bool]:
        for key in document:
            if key not in ("default", "rule"):
                raise PolicyError(f"{self._file}: no such key: {key!r}; there are default and [[rule]]")
        if document.get("default") not in _ACTIONS:
            raise PolicyError(
                f'{self._file}: default must be "allow" or "deny": it is for calls that no rule matches'
            )
        tables = document.get("rule", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise PolicyError(f"{self._file}: 'rule' must be tables: write [[rule]] above each")
        if len(tables) > RULES_MAX:
            raise PolicyError(f"{self._file}: there are {len(tables)} rules, {RULES_MAX} are the most")
        # A header within a multi-line string, or a rule of another form: then lines would be wrong.
        lines = self._lines if len(self._lines) == len(tables) else [None] * len(tables)
        rules = tuple(
            self._rule(table, number, line)
            for number, (table, line) in enumerate(zip(tables, lines, strict=True), 1)
        )
        names = [rule.name for rule in rules]
        for rule in rules:
            if names.count(rule.name) > 1:
                raise PolicyError(
                    f"{self._file}: several rules are called '{rule.name}'; each needs its own name"
                )
        return rules, _ACTIONS[document["default"]]

    def _rule(self, table: dict[str, Any], number: int, line: int | None) -> Rule:
        name = table.get("name")
        if not isinstance(name, str) or not name or not name.isprintable():
            where = f"rule {number}" if line is None else f"rule {number}, line {line}"
            raise PolicyError(f"{self._file}: {where}: name must be a text of printable characters")
        where = f"{self._file}: rule '{name}'" + ("" if line is None else f" (line {line})")
        for key in table:
            if key not in _RULE_KEYS:
                raise PolicyError(f"{where}: no such key: {key!r}; the keys are {', '.join(_RULE_KEYS)}")
        if name in _RESERVED:
            raise PolicyError(f"{where}: the name is taken: it stands for a decision that is no rule's")
        if table.get("action") not in _ACTIONS:
            raise PolicyError(f'{where}: action must be "allow" or "deny"')
        run, read, write = table.get("run"), _texts(where, table, "read"), _texts(where, table, "write")
        origins = _texts(where, table, "origin")
        user, env = _texts(where, table, "user"), _texts(where, table, "env")
        address = _texts(where, table, "address")
        rule = Rule(
            name=name,
            allow=_ACTIONS[table["action"]],
            methods=_globs([canonical(method) for method in _texts(where, table, "methods") or []]),
            origins=None if origins is None else tuple(origins),
            read=None if read is None else _globs(read, path=True),
            write=None if write is None else _globs(write, path=True),
            run=None if run is None else _argvs(where, run),
            env=_globs(env or []),
            user=None if user is None else _globs(user),
            address=None if address is None else _globs(list(map(_address, address)), path=True),
            line=line,
        )
        _check(where, rule)
        return rule


def _texts(where: str, table: dict[str, Any], key: str) -> list[str] | None:
    texts = table.get(key)
    if texts is None:
        return None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise PolicyError(f"{where}: {key} must be an array of strings, and not empty")
    return texts


def _address(text: str) -> str:
    # Names of hosts are the same in any case.
    return text.lower() if text.startswith("tcp:") else text


def _argvs(where: str, argvs: Any) -> tuple[tuple[Glob, ...], ...]:
    if not isinstance(argvs, list) or not argvs or not all(isinstance(argv, list) and argv for argv in argvs):
        raise PolicyError(
            f'{where}: run must be an array of arrays, such as [["/usr/bin/systemctl", "status", "*"]]'
        )
    return tuple(
        (Glob(words[0], path=True), *_globs(words[1:]))
        for words in (_texts(where, {"run": argv}, "run") or [] for argv in argvs)
    )


def _globs(texts: list[str], *, path: bool = False) -> tuple[Glob, ...]:
    return tuple(Glob(text, path) for text in texts)


def _check(where: str, rule: Rule) -> None:
    """Refuse what could never match, or not as it looks."""
    if not rule.methods:
        raise PolicyError(f"{where}: methods is missing: the names, or patterns, of what it is about")
    for origin in rule.origins or ():
        if origin not in ORIGINS:
            raise PolicyError(f"{where}: no such origin: {origin!r}; there are {', '.join(ORIGINS)}")
    programs = [argv[0] for argv in rule.run or ()]
    for key, globs in (("read", rule.read), ("write", rule.write), ("run", programs)):
        for glob in globs or ():
            if not glob.text.startswith("/") or "//" in glob.text or {".", ".."} & set(glob.text.split("/")):
                raise PolicyError(
                    f"{where}: {key}: {glob.text!r} must begin with / and be without //, . and .."
                )
    _check_addresses(where, rule)
    if rule.env and (rule.run is None or not rule.allow):
        raise PolicyError(f'{where}: env goes with run and with action = "allow" only')
    for glob in rule.methods:
        method = glob.text
        if method in ALWAYS:
            raise PolicyError(f"{where}: methods: {method} is always answered, no rule applies to it")
        if "*" in method or "?" in method:
            continue
        missing = rule.kinds - (SUBJECTS[method].kinds if method in SUBJECTS else frozenset())
        if missing:
            raise PolicyError(f"{where}: {method} has nothing to do with {_KIND_WORDS[min(missing)]}")


def _check_addresses(where: str, rule: Rule) -> None:
    if rule.address is not None and not rule.allow:
        raise PolicyError(
            f'{where}: address goes with action = "allow" only: whoever is refused one name of a host uses '
            "another. Allow what may be reached, and deny the rest in a rule behind"
        )
    for glob in rule.address or ():
        if not glob.text.startswith(("tcp:", "unix:/")):
            raise PolicyError(f"{where}: address: {glob.text!r} must begin with tcp: or unix:/")


_KIND_WORDS = {
    "path": "files (read, write)",
    "run": "programs (run)",
    "user": "users (user)",
    "address": "connections (address)",
}
