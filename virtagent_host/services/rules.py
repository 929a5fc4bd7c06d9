"""Who in a guest may call which service of the host: the rules, and the decision about one call.

The rules of the rules:

1. What no rule allows is refused. There is no other default.
2. The file of one VM comes first, then that for all; in each, the rules in their order. The first that
   matches decides.
3. Everything in a rule must match: the VM, the user, the service, the arguments. A rule that says nothing of
   arguments matches only calls without, if it allows; and any, if it denies.
4. An argument that begins with a dash is none that a rule matches, unless it says so (`dashes`): a program
   would take it for an option.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from virtagent_protocol.glob import Glob

from .request import Caller

#: The last pattern of a list of arguments: any number of them.
REST = "**"


@dataclass(frozen=True)
class Settings:
    """How the calls that a rule allows are run.

    Attributes:
        run_time: seconds for one; a backup needs more than this default.
        input_max: bytes that the guest may send, if there is a bound.
        output_max: bytes that the guest gets, if there is a bound.
        run_as: the user of the host as whom the program runs; None: that of va-host.
    """

    run_time: float = 600.0
    input_max: int | None = None
    output_max: int | None = None
    run_as: str | None = None


@dataclass(frozen=True)
class Rule:
    """One rule of a file.

    Attributes:
        name: its own.
        allow: what it decides.
        services: patterns of names.
        vms: patterns of names; None: any.
        users: patterns of names, and ids; None: any.
        arguments: one pattern for each, and `REST` as the last for any more; None: see rule 3.
        dashes: whether an argument may begin with one.
        settings: for what it allows.
        file: where it stands.
        line: the line there, if that is known.
    """

    name: str
    allow: bool
    services: tuple[Glob, ...]
    vms: tuple[Glob, ...] | None = None
    users: tuple[Glob | int, ...] | None = None
    arguments: tuple[Glob, ...] | None = None
    dashes: bool = False
    settings: Settings = field(default_factory=Settings)
    file: str = ""
    line: int | None = None

    def concerns(self, vm: str, caller: Caller, service: str) -> bool:
        """Whether all but the arguments matches."""
        return (
            any(glob.matches(service) for glob in self.services)
            and (self.vms is None or any(glob.matches(vm) for glob in self.vms))
            and (self.users is None or any(_is_user(user, caller) for user in self.users))
        )

    def objection(self, arguments: tuple[str, ...]) -> str:
        """Return why the arguments keep the rule from matching; "" if they do not."""
        if self.arguments is None:
            return "it allows no arguments" if self.allow and arguments else ""
        rest = bool(self.arguments) and self.arguments[-1].text == REST
        patterns = self.arguments[:-1] if rest else self.arguments
        if len(arguments) < len(patterns) or (len(arguments) > len(patterns) and not rest):
            return f"it is for {len(patterns)}{' or more' if rest else ''} arguments, not {len(arguments)}"
        for number, (argument, pattern) in enumerate(zip(arguments, patterns, strict=False), 1):
            # The one that nearly all are need not be tried.
            if pattern.text != "*" and not pattern.matches(argument):
                return f"argument {number} does not match '{pattern.text}'"
        if self.allow and not self.dashes:
            for number, argument in enumerate(arguments, 1):
                if argument.startswith("-"):
                    return f"argument {number} begins with a dash, and it does not say dashes = true"
        return ""


def _is_user(user: Glob | int, caller: Caller) -> bool:
    if isinstance(user, int):
        return user == caller.uid
    return bool(caller.user) and user.matches(caller.user)


@dataclass(frozen=True)
class Limits:
    """What the guest of one VM may cost. There is no queue: what is beyond is refused, and may be tried
    again.

    Attributes:
        calls: that run at a time.
        calls_per_user: of one user of the guest, at a time.
        per_minute: that are begun in a minute, by all users.
        per_minute_per_user: by one.
    """

    calls: int = 8
    calls_per_user: int = 4
    per_minute: int = 120
    per_minute_per_user: int = 60

    def with_values(self, values: dict[str, int]) -> Limits:
        """Return these with some of them replaced; *values* has the names of a file, with dashes."""
        return replace(self, **{name.replace("-", "_"): value for name, value in values.items()})

    @staticmethod
    def names() -> list[str]:
        """Return the names that a file has for them."""
        return [entry.name.replace("_", "-") for entry in fields(Limits)]


@dataclass(frozen=True)
class Decision:
    """What became of a call, and why.

    Attributes:
        rule: that decided; None: no rule matched.
        why: in words, for the host's own log.
    """

    rule: Rule | None
    why: str

    @property
    def allowed(self) -> bool:
        """Whether it may be run."""
        return self.rule is not None and self.rule.allow

    def __str__(self) -> str:
        if self.rule is None:
            return self.why
        where = self.rule.file + (f", line {self.rule.line}" if self.rule.line is not None else "")
        return f"rule '{self.rule.name}' ({where}): {self.why}"


@dataclass(frozen=True)
class Policy:
    """What holds for one VM.

    Attributes:
        rules: in the order in which they are asked.
        limits: of that VM.
        files: those that were read.
    """

    rules: tuple[Rule, ...] = ()
    limits: Limits = Limits()
    files: tuple[str, ...] = ()

    def decide(self, vm: str, caller: Caller, service: str, arguments: tuple[str, ...]) -> Decision:
        """Return what becomes of a call."""
        missed = ""
        for rule in self.rules:
            if not rule.concerns(vm, caller, service):
                continue
            objection = rule.objection(arguments)
            if not objection:
                return Decision(rule, "allowed" if rule.allow else "denied")
            missed = missed or f"; rule '{rule.name}' would, but {objection}"
        if not self.rules:
            return Decision(None, "there are no rules, so nothing is allowed")
        return Decision(None, f"no rule allows it{missed}")
