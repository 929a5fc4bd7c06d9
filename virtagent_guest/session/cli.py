"""va-guest session: the command line of the session agent."""

from __future__ import annotations

import argparse
import logging

from virtagent_protocol.logs import set_up
from virtagent_protocol.text import visible_line

from ..config import DEFAULT_FILE, ConfigError, load
from ..local import DEFAULT_SOCKET
from .clipboard_settings import ClipboardSettings

log = logging.getLogger("virtagent.session")

_DESCRIPTION = """\
The agent of this user's session: lets the host run programs and see to files as this user, in this session's
environment, by way of the guest's agent. It is to be run by systemd, once in each session:

  systemctl --user enable --now va-guest-session

It connects by itself, also when the guest's agent comes later, or is restarted."""


def main(argv: list[str]) -> int:
    """Run the session agent; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="va-guest session",
        description=_DESCRIPTION,
        epilog="exit status: 0 ended by SIGTERM or SIGINT, 2 usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help=f"the agent's socket, if it is not $VIRTAGENT_SOCKET, or {DEFAULT_SOCKET}",
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"read what is shared of the clipboard from FILE, not {DEFAULT_FILE}"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug messages, too")
    options = parser.parse_args(argv)
    set_up("va-guest-session", verbose=options.verbose)
    try:
        clipboard = load(options.config).clipboard
    except ConfigError as error:
        # The agent itself says so, too. This one has more to do than the clipboard, which is not shared then.
        log.warning("%s; the clipboard is not shared", visible_line(str(error)))
        clipboard = ClipboardSettings()

    import trio

    from .agent import serve
    from .clipboard import CLIPBOARD

    CLIPBOARD.settings = clipboard
    trio.run(serve, options.socket)
    return 0
