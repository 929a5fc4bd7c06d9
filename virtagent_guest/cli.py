"""va-guest: the command line of the agent.

trio and the service are imported when the command line and the configuration are known to make
sense: on a slow guest that import takes a second, and --help should not.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from virtagent_protocol import __version__
from virtagent_protocol.errors import EXIT_STATUS, VirtagentError
from virtagent_protocol.logs import set_up
from virtagent_protocol.text import visible_line

from .config import CHANNEL_KINDS, DEFAULT_FILE, DEFAULT_PORT, Config, ConfigError, choose_channel, load

EXIT_USAGE = 2

_EPILOG = f"""\
channels:
  virtio-serial   a virtio-serial port (default: {DEFAULT_PORT})
  isa-serial      a serial line, raw 8N1 (-p /dev/ttyS1)
  unix-connect    a unix socket the host end listens on
  unix-listen     a unix socket to listen on, mode 0600, one peer at a time

The configuration file is {DEFAULT_FILE} and need not exist; options overrule it.
The agent stays in the foreground: systemd, or a shell's &, does what -d was for.

exit status: 0 ended by SIGTERM or SIGINT, 2 usage or configuration, 3 no such device or socket,
  4 in use by another process, 5 not permitted, 6 broken"""


def main(argv: list[str] | None = None) -> int:
    """Run the agent; return its exit status (see --help)."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        config = _configure(options)
    except ConfigError as error:
        _refuse(parser, str(error))
    set_up("va-guest", verbose=config.verbose)
    return _serve(config)


def _serve(config: Config) -> int:
    import trio

    from .service import serve

    try:
        trio.run(serve, config)
    except VirtagentError as error:
        print(f"va-guest: {visible_line(str(error))}", file=sys.stderr)
        return EXIT_STATUS[error.kind]
    return 0


def _configure(options: argparse.Namespace) -> Config:
    config = load(options.config)
    return Config(
        channel=choose_channel(config.channel, options.channel, options.path, ports=options.ports),
        verbose=options.verbose or config.verbose,
    )


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
    parser.add_argument("--config", metavar="FILE", help=f"read FILE, not {DEFAULT_FILE}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug messages, too")
    parser.add_argument("-V", "--version", action="version", version=f"va-guest {__version__}")
    return parser


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    print(f"{parser.prog}: {visible_line(message)}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)
