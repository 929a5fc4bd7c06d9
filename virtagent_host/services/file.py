"""The files of rules: TOML → `Policy`, or an error that says in which file and line, and what.

In the directory of services (`ServicesDir`): ``policy.toml`` for all VMs, ``vm/NAME.toml`` for one. Neither
need be there; without any, nothing is allowed. A file that is not wholly understood is not used at all: a
misspelt condition that is silently left out would allow what its writer meant to forbid.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from virtagent_protocol.errors import FailureKind, VirtagentError
from virtagent_protocol.glob import Glob

from .rules import REST, Limits, Policy, Rule, Settings
from .trusted import Untrusted, check_trusted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

#: Rules in a file, and bytes of one. Each call is held against all of them.
RULES_MAX = 1000
SIZE_MAX = 1024 * 1024

_ACTIONS = {"allow": True, "deny": False}
_KEYS = ("name", "action", "services", "vms", "users", "arguments", "dashes")
_SETTINGS = ("run-time", "input-max", "output-max", "run-as")
_RULE_HEADER = re.compile(r"(?m)^[ \t]*\[\[[ \t]*rule[ \t]*\]\]")
_ID_MAX = 2**32 - 1


class PolicyError(VirtagentError):
    """The file makes no sense, or is not to be trusted; the message names it, and the line."""

    kind = FailureKind.REFUSED


@dataclass(frozen=True)
class ServicesDir:
    """The directory of services: their policies, and the executables among them."""

    path: str

    @classmethod
    def find(cls, given: str | None) -> ServicesDir:
        """Return that which was given; else root's, or that of the user in XDG's configuration directory."""
        if given is not None:
            return cls(os.path.abspath(given))
        if os.geteuid() == 0:
            return cls("/etc/virtagent/services")
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return cls(os.path.join(config, "virtagent/services"))

    @property
    def programs(self) -> str:
        """Where the executables are; the name of each is that of its service."""
        return os.path.join(self.path, "bin")

    @property
    def for_all(self) -> str:
        """The policy for all VMs."""
        return os.path.join(self.path, "policy.toml")

    def for_vm(self, vm: str) -> str:
        """Return the policy of one VM."""
        return os.path.join(self.path, "vm", f"{vm}.toml")

    def files(self) -> list[str]:
        """Return all files of rules that there are."""
        try:
            names = sorted(
                name for name in os.listdir(os.path.join(self.path, "vm")) if name.endswith(".toml")
            )
        except OSError:
            names = []
        for_all = [self.for_all] if os.path.lexists(self.for_all) else []
        return for_all + [os.path.join(self.path, "vm", name) for name in names]


def load_policy(directory: ServicesDir, vm: str) -> Policy:
    """Return what holds for a VM.

    Raises:
        PolicyError: a file cannot be read, or is wrong.
    """
    rules: list[Rule] = []
    limits: dict[str, int] = {}
    files = []
    for name, of_vm in ((directory.for_vm(vm), True), (directory.for_all, False)):
        if os.path.lexists(name):
            more, bounds = read_rules(name, of_vm=of_vm)
            rules += more
            limits = {**bounds, **limits}
            files.append(name)
    return Policy(tuple(rules), Limits().with_values(limits), tuple(files))


def read_rules(name: str, *, of_vm: bool = False) -> tuple[list[Rule], dict[str, int]]:
    """Return the rules of a file, and the limits that it sets.

    Args:
        name: of the file.
        of_vm: whether it is for one VM alone.

    Raises:
        PolicyError: it cannot be read, or is wrong.
    """
    try:
        with open(check_trusted(name), "rb") as opened:
            data = opened.read(SIZE_MAX + 1)
        text = data.decode()
    except OSError as error:
        raise PolicyError(f"{name} cannot be read: {error.strerror}") from error
    except Untrusted as error:
        raise PolicyError(str(error)) from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{name} is not UTF-8: {error}") from error
    if len(data) > SIZE_MAX:
        raise PolicyError(f"{name} has more than {SIZE_MAX} bytes")
    try:
        # It tells line and column of what it does not understand.
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{name} is not TOML: {error}") from error
    return _Parser(name, text, of_vm).document(document)


class _Parser:
    """Turns one document into rules."""

    def __init__(self, file: str, text: str, of_vm: bool) -> None:
        self._file = file
        self._text = text.splitlines()
        self._lines = [text.count("\n", 0, match.start()) + 1 for match in _RULE_HEADER.finditer(text)]
        self._of_vm = of_vm

    def document(self, document: dict[str, Any]) -> tuple[list[Rule], dict[str, int]]:
        for key in document:
            if key not in ("limits", "rule"):
                self._fail(self._line_at_top(key), f"no such key: {key!r}; there are [limits] and [[rule]]")
        tables = document.get("rule", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._fail(None, "'rule' must be tables: write [[rule]] above each")
        if len(tables) > RULES_MAX:
            self._fail(None, f"there are {len(tables)} rules, {RULES_MAX} are the most")
        # A header within a multi-line string, or a rule of another form: then lines would be wrong.
        lines = self._lines if len(self._lines) == len(tables) else [None] * len(tables)
        rules = [_RuleParser(self, table, line).rule() for table, line in zip(tables, lines, strict=True)]
        names: set[str] = set()
        for rule in rules:
            if rule.name in names:
                self._fail(rule.line, f"another rule is called '{rule.name}', too; each needs its own name")
            names.add(rule.name)
        return rules, self._limits(document.get("limits", {}))

    def _limits(self, table: Any) -> dict[str, int]:
        line = self._line_at_top("limits")
        if not isinstance(table, dict):
            self._fail(line, "'limits' must be a table: write [limits]")
        for key, value in table.items():
            if key not in Limits.names():
                there = ", ".join(Limits.names())
                self._fail(self._line_of(key, line), f"no such key in [limits]: {key!r}; there are {there}")
            if type(value) is not int or not 0 <= value <= 1_000_000:
                self._fail(self._line_of(key, line), f"{key} must be a number from 0 to 1000000")
        return dict(table)

    def _line_of(self, key: str, first: int | None) -> int | None:
        """Return the line of a key that stands in the table whose header is that line, or that line."""
        if first is None:
            return None
        assignment = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
        for number, text in enumerate(self._text[first - 1 :], first):
            if number > first and text.lstrip().startswith("[["):
                break
            if assignment.match(text):
                return number
        return first

    def _line_at_top(self, key: str) -> int | None:
        header = re.compile(rf"""\s*(\[\[?\s*)?["']?{re.escape(key)}["']?\s*[\].=]""")
        return next((number for number, text in enumerate(self._text, 1) if header.match(text)), None)

    def _fail(self, line: int | None, what: str) -> None:
        raise PolicyError(f"{self._file}{'' if line is None else f', line {line}'}: {what}")


class _RuleParser:
    """Turns one table into a rule."""

    def __init__(self, whole: _Parser, table: dict[str, Any], line: int | None) -> None:
        self._whole = whole
        self._table = table
        self._line = line
        self._name = ""

    def rule(self) -> Rule:
        self._name = self._text("name") or ""
        if not self._name or not self._name.isprintable():
            self._fail("name", "name must be a text of printable characters")
        for key in self._table:
            if key not in (*_KEYS, *_SETTINGS):
                there = ", ".join((*_KEYS, *_SETTINGS))
                self._fail(key, f"no such key: {key!r}; the keys are {there}")
        allow = _ACTIONS.get(self._text("action") or "")
        if allow is None:
            self._fail("action", 'action must be "allow" or "deny"')
        for key in self._table:
            if not allow and key in (*_SETTINGS, "dashes"):
                self._fail(key, f'{key} goes with action = "allow" only')
        if self._whole._of_vm and "vms" in self._table:
            self._fail("vms", "this file is for one VM, so there are no vms in it")
        services = self._globs("services")
        if not services:
            self._fail("services", "services is missing: the names, or patterns, of what it is about")
        users = self._users()
        if allow and users is None:
            self._fail("users", 'users is missing: names and ids in the guest, or ["*"] and all are allowed')
        arguments = self._globs("arguments", may_be_empty=True)
        for glob in (arguments or ())[:-1]:
            if glob.text == REST:
                self._fail("arguments", f'"{REST}" stands for the rest, so it must be the last')
        dashes = self._table.get("dashes", False)
        if not isinstance(dashes, bool):
            self._fail("dashes", "dashes must be true or false")
        return Rule(
            name=self._name,
            allow=bool(allow),
            services=services or (),
            vms=self._globs("vms"),
            users=users,
            arguments=arguments,
            dashes=dashes,
            settings=self._settings(),
            file=self._whole._file,
            line=self._line,
        )

    def _settings(self) -> Settings:
        default = Settings()
        run_time = self._table.get("run-time", default.run_time)
        if type(run_time) not in (int, float) or not 0 < run_time <= 31_536_000:
            self._fail("run-time", "run-time must be a number of seconds above 0, a year at most")
        run_as = self._text("run-as")
        if run_as == "":
            self._fail("run-as", "run-as must be the name of a user of this host")
        return Settings(run_time, self._size("input-max"), self._size("output-max"), run_as)

    def _size(self, key: str) -> int | None:
        size = self._table.get(key)
        if size is not None and (type(size) is not int or size < 0):
            self._fail(key, f"{key} must be a number of bytes, without quotes")
        return size

    def _users(self) -> tuple[Glob | int, ...] | None:
        users = self._table.get("users")
        if users is None:
            return None
        if not isinstance(users, list) or not users:
            self._fail("users", "users must be an array of names and numbers, and not empty")
        for user in users or ():
            if not (isinstance(user, str) and user) and not (type(user) is int and 0 <= user <= _ID_MAX):
                self._fail("users", f"{user!r} is neither a name nor the number of a user")
        return tuple(Glob(user) if isinstance(user, str) else user for user in users or ())

    def _globs(self, key: str, *, may_be_empty: bool = False) -> tuple[Glob, ...] | None:
        texts = self._table.get(key)
        if texts is None:
            return None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            self._fail(key, f"{key} must be an array of strings")
        if not texts and not may_be_empty:
            self._fail(key, f"{key} must not be empty")
        return tuple(Glob(text) for text in texts)

    def _text(self, key: str) -> str | None:
        text = self._table.get(key)
        if text is not None and not isinstance(text, str):
            self._fail(key, f"{key} must be a string")
        return text

    def _fail(self, key: str, what: str) -> None:
        line = self._whole._line_of(key, self._line)
        self._whole._fail(line, f"rule '{self._name}': {what}" if self._name else what)
