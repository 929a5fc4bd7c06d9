"""`va-guest policy`: explains a decision, checks a file. It asks no agent that runs: its code judges."""

from __future__ import annotations

import argparse
import json
import sys

from virtagent_protocol.errors import EXIT_STATUS, FailureKind
from virtagent_protocol.text import visible_line
from virtagent_protocol.values import Value

from ..config import DEFAULT_FILE as CONFIG_FILE
from ..config import ConfigError, load
from .file import load_policy, read_rules
from .names import canonical
from .remarks import remarks
from .rules import ALWAYS, ORIGINS, Decision, Policy
from .subject import Unjudgeable, resolve, subject_of

EXIT_USAGE = 2

_WHY_EPILOG = """\
ARGS are the method's, in their order; arrays and structs are written in JSON:
  va-guest policy why va.getfile /var/log/syslog
  va-guest policy why guest-exec /usr/bin/uptime '["--pretty"]'
  va-guest policy why guest-file-open '{"path": "/etc/motd", "mode": "r"}'

exit status: 0 allowed, 5 forbidden, 2 usage, configuration or policy"""


def main(argv: list[str]) -> int:
    """Run `va-guest policy` with what follows these words; return its exit status."""
    options = _parser().parse_args(argv)
    try:
        return _why(options) if options.command == "why" else _check(options.file)
    except ConfigError as error:
        print(f"va-guest: {visible_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE


def _why(options: argparse.Namespace) -> int:
    settings = load(options.config).policy.with_lists(options.allow_rpcs, options.block_rpcs)
    method = canonical(options.method)
    arguments = [_value(text) for text in options.args]
    decision = load_policy(settings).decide(method, arguments, options.origin)
    if method not in ALWAYS.union(_methods()):
        _note(f"this agent has no method '{method}'")
    links = _resolved(method, arguments)
    if options.json:
        shown = {"method": method, **vars(decision), **({"resolved": links} if links else {})}
        print(json.dumps(shown))
    else:
        print(visible_line(_in_words(method, decision)))
        for given, real in links.items():
            print(visible_line(f"  {given} is {real}"))
    return 0 if decision.allowed else EXIT_STATUS[FailureKind.FORBIDDEN]


def _check(file: str) -> int:
    rules, default = read_rules(file)
    for line in remarks(Policy(rules=rules, default=default, file=file), _methods()):
        _note(line)
    print(f"{file}: {len(rules)} rules, default {'allow' if default else 'deny'}")
    return 0


def _in_words(method: str, decision: Decision) -> str:
    where = decision.file or ""
    if decision.line is not None:
        where += f", line {decision.line}"
    word = "allowed" if decision.allowed else "forbidden"
    return f"{method}: {word} by '{decision.rule}'{where and f' ({where})'}: {decision.why}"


def _resolved(method: str, arguments: list[Value]) -> dict[str, str]:
    """Return those paths in the arguments that are others when they are resolved, or why one cannot be."""
    resolved = {}
    try:
        subject = subject_of(method, arguments)
        for path in () if subject is None else (subject.reads, subject.writes):
            if path is not None and (real := resolve(path)) != path:
                resolved[path] = real
    except Unjudgeable as error:
        resolved["what cannot be judged"] = str(error)
    return resolved


def _value(text: str) -> Value:
    if not text.startswith(("[", "{")):
        return text
    try:
        value: Value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"argument {text!r} is not JSON: {error}") from None
    return value


def _methods() -> list[str]:
    from ..methods import all_names

    return all_names()


def _note(line: str) -> None:
    print(f"va-guest: note: {visible_line(line)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    from ..cli import add_list_options

    parser = argparse.ArgumentParser(prog="va-guest policy", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    why = commands.add_parser(
        "why",
        help="say whether a call is allowed, and what decides that",
        epilog=_WHY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    why.add_argument("--config", metavar="FILE", help=f"read FILE, not {CONFIG_FILE}")
    add_list_options(why)
    why.add_argument("--origin", choices=ORIGINS, default="host", help="who calls (default: %(default)s)")
    why.add_argument("--json", action="store_true", help="print one JSON object")
    why.add_argument("method", metavar="METHOD")
    why.add_argument("args", metavar="ARGS", nargs="*")
    check = commands.add_parser("check", help="check a file of rules", allow_abbrev=False)
    check.add_argument("file", metavar="FILE")
    return parser
