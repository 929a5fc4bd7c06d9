"""The command line of the agent itself; `commands` has the others that va-guest takes.

trio and the service are imported when the command line and the configuration are known to make
sense: on a slow guest that import takes a second, and --help should not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from virtagent_protocol import __version__
from virtagent_protocol.errors import EXIT_STATUS, VirtagentError
from virtagent_protocol.logs import set_up
from virtagent_protocol.text import visible_line

from .config import (
    CHANNEL_KINDS,
    DEFAULT_FILE,
    DEFAULT_PORT,
    QGA_PORT,
    Config,
    ConfigError,
    choose_channel,
    choose_qga,
    dump,
    load,
)
from .policy.file import load_policy
from .policy.rules import Policy

EXIT_USAGE = 2

_EPILOG = f"""\
channels:
  virtio-serial   a virtio-serial port (default: {DEFAULT_PORT})
  isa-serial      a serial line, raw 8N1 (-p /dev/ttyS1)
  unix-connect    a unix socket the host end listens on
  unix-listen     a unix socket to listen on, mode 0600, one peer at a time
  none            no such channel (there must be the other, then)

The configuration file is {DEFAULT_FILE} and need not exist; options overrule it, lists add to its.
SIGHUP loads the policy again. "va-guest policy why METHOD ARGS" explains it, "va-guest policy check FILE"
checks one. "va-guest notify NAME KEY=VALUE" tells the host of an event, "va-guest call SERVICE" calls a
service of the host.
"va-guest extensions" lists what the files in /etc/virtagent/methods.d are, and what is wrong with others.
The agent stays in the foreground: systemd, or a shell's &, does what -d was for.

exit status: 0 ended by SIGTERM or SIGINT, 2 usage or configuration, 3 no such device or socket,
  4 in use by another process, 5 not permitted, 6 broken"""


def main(argv: list[str]) -> int:
    """Run the agent; return its exit status (see --help). `commands` is what begins a process."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        config = _configure(options)
        if options.dump_conf:
            print(dump(config), end="")
            return 0
        policy = load_policy(config.policy)
    except ConfigError as error:
        _refuse(parser, str(error))
    set_up("va-guest", verbose=config.verbose)
    return _serve(config, policy, lambda: load_policy(_configure(options).policy))


def _serve(config: Config, policy: Policy, load_again: Callable[[], Policy]) -> int:
    import trio

    from .methods import all_names
    from .policy.guard import Guard
    from .service import serve

    try:
        trio.run(serve, config, Guard(policy, load_again, all_names()))
    except VirtagentError as error:
        print(f"va-guest: {visible_line(str(error))}", file=sys.stderr)
        return EXIT_STATUS[error.kind]
    return 0


def _configure(options: argparse.Namespace) -> Config:
    config = load(options.config)
    chosen = Config(
        channel=choose_channel(config.channel, options.channel, options.path, ports=options.ports),
        verbose=options.verbose or config.verbose,
        policy=config.policy.with_lists(options.allow_rpcs, options.block_rpcs),
        qga=choose_qga(config.qga, options.qga),
        hooks=config.hooks,
        forwards=config.forwards,
        extensions=config.extensions,
        socket=config.socket,
        events=config.events,
        clipboard=config.clipboard,
    )
    if not chosen.channel.each() and not chosen.qga.each():
        raise ConfigError("both channels are 'none': there is nothing to serve")
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="va-guest",
        description="The guest end of virtagent: serves a host over a virtio-serial port.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An abbreviation that works today is ambiguous, or another option, tomorrow.
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--channel",
        metavar="CHANNEL",
        help=f"{' | '.join(CHANNEL_KINDS)}; also CHANNEL:PATH",
    )
    parser.add_argument("-p", "--path", metavar="PATH", help="the device or socket")
    parser.add_argument(
        "--ports",
        metavar="one|two",
        help="two: PATH-server for the host's calls, PATH-client for the guest's own",
    )
    parser.add_argument(
        "--qga",
        metavar="CHANNEL",
        help=f"also serve clients of QEMU's guest agent on CHANNEL[:PATH]; virtio-serial is {QGA_PORT}",
    )
    parser.add_argument("--config", metavar="FILE", help=f"read FILE, not {DEFAULT_FILE}")
    add_list_options(parser)
    parser.add_argument(
        "-D", "--dump-conf", action="store_true", help="print the configuration as TOML, and exit"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug messages, too")
    parser.add_argument("-V", "--version", action="version", version=f"va-guest {__version__}")
    return parser


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """Add qemu-ga's options for what the host may call; see `PolicySettings.with_lists`."""
    for names, verb in ((("-a", "--allow-rpcs"), "allow"), (("-b", "--block-rpcs"), "refuse")):
        also = "and refuse all others; " if verb == "allow" else "whatever else allows it; "
        parser.add_argument(
            *names,
            metavar="LIST",
            action=_ListOption,
            help=f"{verb} these methods (names with commas between), {also}'help' prints them",
        )
    # What --block-rpcs was called before QEMU 7.
    parser.add_argument("--blacklist", dest="block_rpcs", action=_ListOption, help=argparse.SUPPRESS)


class _ListOption(argparse.Action):
    """Collects the lists; one that asks for help prints the names of all methods, as qemu-ga does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if values in ("help", "?"):
            from .methods import all_names
            from .policy.names import qapi_spelling

            print("\n".join(map(qapi_spelling, all_names())))
            parser.exit()
        collected = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*collected, values])


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    print(f"{parser.prog}: {visible_line(message)}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)
