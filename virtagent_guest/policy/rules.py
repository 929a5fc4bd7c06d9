"""Rules, in order, and the decision they come to.

The rules:

1. `ALWAYS` is answered whatever a policy says: without it a host could not tell a guest that forbids from one
   that is dead. ``system.multicall`` is, too; each call in it is judged by itself.
2. Then the lists, as with qemu-ga: what the block list names is refused; if there is an allow list, so is
   what it does not name. They only ever take away.
3. Then the rules of the file, in order. The first that matches decides; if none does, the file's default.
4. Without lists and file everything is allowed.
5. A rule matches if everything in it does. An allow rule matches a call only if it covers all that the call
   reaches, a deny rule if it meets any of it; so in doubt the answer is no.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from virtagent_protocol.errors import Fault, FaultCode

from .names import Glob, canonical
from .subject import SUBJECTS, Arguments, Subject, Unjudgeable, places, program_names, subject_of

#: Whoever calls: the host over virtagent's link, the host over QEMU's own guest agent protocol, or a
#: session agent in the guest.
ORIGINS = ("host", "qga")

ALWAYS = frozenset(
    {
        "va.hello",
        "va.ping",
        "va.capabilities",
        "system.listMethods",
        "system.methodSignature",
        "system.methodHelp",
        "system.multicall",
    }
)


@dataclass(frozen=True)
class Decision:
    """What a policy says to a call.

    Attributes:
        allowed: whether it may be made.
        rule: the name of what decided: a rule's, or ``default``, ``allow-rpcs``, ``block-rpcs``, ``always``,
            ``no policy``.
        why: in words.
        file: the file that says so; None: it is no file's.
        line: where in it, if that is known.
    """

    allowed: bool
    rule: str
    why: str
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Rule:
    """One rule of the file; None stands for a condition that is not set.

    Attributes:
        name: as the user called it.
        allow: what it says to a call that it matches.
        methods: patterns of names, one of which must match.
        origins: of `ORIGINS`.
        read: patterns of paths that are read.
        write: patterns of paths that are written or created.
        run: patterns of a program and its arguments; ``**`` at the end is any number of further ones.
        env: patterns of environment variables that a program may be given; an allow rule without takes none.
        user: patterns of users for whom is acted.
        address: patterns of addresses that are connected to or listened on; of allow rules only.
        line: where it stands in the file, if that is known.
    """

    name: str
    allow: bool
    methods: tuple[Glob, ...]
    origins: tuple[str, ...] | None = None
    read: tuple[Glob, ...] | None = None
    write: tuple[Glob, ...] | None = None
    run: tuple[tuple[Glob, ...], ...] | None = None
    env: tuple[Glob, ...] = ()
    user: tuple[Glob, ...] | None = None
    address: tuple[Glob, ...] | None = None
    line: int | None = None

    def concerns(self, method: str, origin: str) -> bool:
        """Whether calls of this method from there may match, depending on their arguments."""
        return (
            _any(self.methods, method)
            and (self.origins is None or origin in self.origins)
            and (not self.conditional or (method in SUBJECTS and self.kinds <= SUBJECTS[method].kinds))
        )

    @property
    def kinds(self) -> frozenset[str]:
        """What its conditions ask for (see `subject.Entry`)."""
        asked = {
            "path": self.read is not None or self.write is not None,
            "run": self.run is not None,
            "user": self.user is not None,
            "address": self.address is not None,
        }
        return frozenset(kind for kind, is_asked in asked.items() if is_asked)

    @property
    def conditional(self) -> bool:
        """Whether the arguments count."""
        return bool(self.kinds)

    def matches(self, method: str, arguments: Arguments) -> bool:
        """Whether the arguments of a call that it concerns match."""
        if not self.conditional:
            return True
        try:
            subject = subject_of(method, arguments)
            if subject is None:
                return False
            # Each that is set gives its word, and for one rule all must be the same.
            return all(holds(self, subject) for holds in _CONDITIONS)
        except Unjudgeable:
            return not self.allow


def _any(patterns: Iterable[Glob], text: str) -> bool:
    return any(pattern.matches(text) for pattern in patterns)


def _paths(rule: Rule, subject: Subject) -> bool:
    """An allow rule must cover each access that is made, a deny rule one of them."""
    if rule.read is None and rule.write is None:
        return True
    made = [
        _meets(rule.allow, patterns or (), place, whole=subject.whole)
        for patterns, path in ((rule.read, subject.reads), (rule.write, subject.writes))
        if path is not None
        for place in places(path, itself=subject.itself)
    ]
    return bool(made) and (all(made) if rule.allow else any(made))


def _meets(allow: bool, patterns: Iterable[Glob], path: str, *, whole: bool) -> bool:
    """Whether a pattern matches; of a whole tree, for an allow rule all in it, for a deny rule any."""
    if not whole:
        return _any(patterns, path)
    if allow:
        return any(pattern.text.endswith("**") and pattern.matches(path) for pattern in patterns)
    return any(pattern.matches(path) or pattern.may_match_below(path) for pattern in patterns)


def _program(rule: Rule, subject: Subject) -> bool:
    if rule.run is None:
        return True
    if subject.argv is None:
        return False
    known_as, really = program_names(subject.argv[0])
    argvs = [(name, *subject.argv[1:]) for name in ((known_as,) if rule.allow else (known_as, really))]
    if not any(_argv_matches(pattern, argv) for pattern in rule.run for argv in argvs):
        return False
    # LD_PRELOAD makes any program another one.
    return not rule.allow or all(_any(rule.env, name) for name in subject.variables)


def _argv_matches(patterns: Sequence[Glob], argv: Sequence[str]) -> bool:
    if len(patterns) > 1 and patterns[-1].text == "**":
        patterns = patterns[:-1]
        argv = argv[: len(patterns)]
    return len(patterns) == len(argv) and all(
        pattern.matches(word) for pattern, word in zip(patterns, argv, strict=True)
    )


def _user(rule: Rule, subject: Subject) -> bool:
    return rule.user is None or (subject.user is not None and _any(rule.user, subject.user))


def _address(rule: Rule, subject: Subject) -> bool:
    return rule.address is None or (subject.address is not None and _any(rule.address, subject.address))


_CONDITIONS: tuple[Callable[[Rule, Subject], bool], ...] = (_paths, _program, _user, _address)


@dataclass(frozen=True)
class Policy:
    """Lists and rules; all names in them are canonical.

    Attributes:
        allow: the allow list, or None.
        block: the block list.
        rules: of the file, in its order.
        default: what the file says to what no rule matches.
        file: its name; None: there is none.
    """

    allow: frozenset[str] | None = None
    block: frozenset[str] = frozenset()
    rules: tuple[Rule, ...] = ()
    default: bool = True
    file: str | None = None

    @property
    def in_force(self) -> bool:
        """Whether there is any list or file."""
        return self.allow is not None or bool(self.block) or self.file is not None

    def decide(self, method: str, arguments: Arguments, origin: str = "host") -> Decision:
        """Say what becomes of a call. It may look at the file system, and so block.

        Args:
            method: its name, in any spelling.
            arguments: see `Arguments`.
            origin: one of `ORIGINS`.
        """
        method = canonical(method)
        decision = self._by_list(method)
        if decision is not None:
            return decision
        for rule in self.rules:
            if rule.concerns(method, origin) and rule.matches(method, arguments):
                return self._by_rule(rule)
        if self.file is None:
            return Decision(True, "no policy", "nothing restricts it")
        word = "allows" if self.default else "denies"
        return Decision(self.default, "default", f"no rule matches, and the default {word} that", self.file)

    def check(self, method: str, arguments: Arguments, origin: str = "host") -> None:
        """Let a call pass, or refuse it; see `decide`.

        Raises:
            Fault: FORBIDDEN, with the name of the rule.
        """
        decision = self.decide(method, arguments, origin)
        if not decision.allowed:
            raise Fault(
                FaultCode.FORBIDDEN,
                f"blocked by the guest's policy: rule '{decision.rule}' does not allow this call "
                f"(in the guest, va-guest policy why {canonical(method)} tells more)",
            )

    def depends_on_arguments(self, method: str, origin: str) -> bool:
        """Whether a decision looks at arguments, and so perhaps at the file system."""
        method = canonical(method)
        return self._by_list(method) is None and any(
            rule.conditional and rule.concerns(method, origin) for rule in self.rules
        )

    def forbids(self, method: str, origin: str = "host") -> bool:
        """Whether no call of this method is allowed, whatever its arguments are."""
        method = canonical(method)
        decision = self._by_list(method)
        if decision is not None:
            return not decision.allowed
        for rule in self.rules:
            if rule.concerns(method, origin) and (rule.allow or not rule.conditional):
                return not rule.allow
        return not self.default

    def _by_list(self, method: str) -> Decision | None:
        if method in ALWAYS:
            return Decision(True, "always", "this is answered whatever a policy says")
        if method in self.block:
            return Decision(False, "block-rpcs", "the block list names it")
        if self.allow is not None and method not in self.allow:
            return Decision(False, "allow-rpcs", "there is an allow list, and it does not name it")
        return None

    def _by_rule(self, rule: Rule) -> Decision:
        return Decision(rule.allow, rule.name, "it is the first rule that matches", self.file, rule.line)
