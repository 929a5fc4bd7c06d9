"""`va-guest notify`: tells the host that something happened in the guest."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from virtagent_protocol.errors import LocalProtocolError, VirtagentError
from virtagent_protocol.events import DATA_MAX, check_name, data_text
from virtagent_protocol.text import visible_line

from ..local.client import Agent
from ..local.telling import seconds, tell

#: Seconds for the agent to take the event. It may be slowed down, not for long.
TIMEOUT = 10.0
EXIT_USAGE = 2

_EPILOG = """\
A VALUE is JSON if it parses as such, else a string; quote a number to make it a string: id='"1"'.

The agent keeps the event until the host has it, also while there is no host: it is delivered once, and in
order. On the host, "va-host events" prints it and "va-host on NAME -- command" acts on it. Who told it, this
user and this process, goes with it.

examples:
  va-guest notify backup.done bytes=12345 target=nightly
  df --output=pcent / | jq -R '{used: .}' -s | va-guest notify disk.report --json -

exit status: 0 the agent has it, 1 it refused, 2 usage, 3 no agent, 4 the agent is busy, 5 forbidden,
  6 timed out or broken"""


def main(argv: list[str]) -> int:
    """Run `va-guest notify` with what follows these words; return its exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    try:
        check_name(options.name)
        data = data_text(_data(options))
    except LocalProtocolError as error:
        print(f"{parser.prog}: {visible_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    try:
        with Agent(options.socket, timeout=options.timeout) as agent:
            agent.call("va.notify", options.name, data)
    except VirtagentError as error:
        return tell(parser, error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="va-guest notify",
        description="Tell the host that something happened.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="what happened, in lower case: backup.done")
    parser.add_argument("pairs", metavar="KEY=VALUE", nargs="*", help="what there is to say of it")
    parser.add_argument(
        "--json", metavar="TEXT", help="a JSON object with more of that; '-' reads it from stdin"
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="the agent's local socket; default: $VIRTAGENT_SOCKET, else /run/virtagent/guest.sock",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=TIMEOUT,
        help=f"how long to wait for the agent (default: {TIMEOUT:g})",
    )
    return parser


def _data(options: argparse.Namespace) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if options.json is not None:
        # One more than is allowed tells that there is too much, without reading all of it.
        text = sys.stdin.read(8 * DATA_MAX) if options.json == "-" else options.json
        try:
            data = json.loads(text)
        except ValueError as error:
            raise LocalProtocolError(f"--json: not JSON: {error}") from None
        if not isinstance(data, dict):
            raise LocalProtocolError('--json: not a JSON object, such as {"bytes": 12345}')
    for pair in options.pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise LocalProtocolError(f"{pair!r} is not KEY=VALUE")
        if key in data:
            raise LocalProtocolError(f"there are two values for '{key}'")
        data[key] = _value(value)
    return data


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(name: str) -> None:
    raise ValueError  # NaN is a word here
