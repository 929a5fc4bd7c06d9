"""`va-guest call`: a service of the host in place of this process, as far as its user can tell."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys

from virtagent_protocol.errors import VirtagentError
from virtagent_protocol.text import VisibleDecoder
from virtagent_protocol.values import Value
from virtagent_protocol.xmlrpc import text_or_bytes

from ..local.telling import seconds, tell
from .client import StandardFileFailed, call_service, write_all

EXIT_USAGE = 2
#: What a shell reports for a program ended by SIGINT, or by SIGPIPE.
EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 130, 141

_EPILOG = """\
What follows SERVICE is for the service, options included. The host's policy says who may call which
service, with which arguments; without a rule that allows it, nobody may. What a program writes comes here
as it writes it; what a function returns is printed as JSON.

examples:
  tar cz /etc | va-guest call --stdin backup.put etc.tar.gz
  va-guest call backup.get etc.tar.gz >etc.tar.gz

exit status: that of the service, 128 + N if signal N has ended it, 124 if its time was over. Else, with a
line on stderr: 1 the host refused it, 2 usage, 3 no agent or no such service, 4 not ready or too many
calls,
  5 forbidden, 6 timed out or broken"""


def main(argv: list[str]) -> int:
    """Run `va-guest call` with what follows these words; return its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        parser.error("which service of the host?")
    arguments: list[Value] = [text_or_bytes(os.fsencode(word)) for word in words[1:]]
    # A terminal is not to be driven by what another machine writes.
    write = _visibly if os.isatty(1) else sys.stdout.buffer
    try:
        ended = call_service(
            words[0],
            *arguments,
            stdin=sys.stdin.buffer if options.stdin else None,
            stdout=write,
            timeout=options.timeout,
            path=options.socket,
        )
        if ended.kind == "function":
            print(json.dumps(ended.value, ensure_ascii=True, default=_text), flush=True)
        return ended.status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_PIPE_CLOSED
    except StandardFileFailed as error:
        if error.errno == errno.EPIPE:
            return EXIT_PIPE_CLOSED
        return tell(parser, error)
    except VirtagentError as error:
        return tell(parser, error)


_decoder = VisibleDecoder()


def _visibly(data: bytes) -> None:
    write_all(1, _decoder.decode(data).encode(errors="backslashreplace"))


def _text(value: object) -> object:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="va-guest call",
        description="Call a service of the host.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--stdin", action="store_true", help="let the service read this command's stdin")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end it after so many seconds")
    parser.add_argument("--socket", metavar="PATH", help="the agent's socket")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="SERVICE [ARGUMENT ...]")
    return parser
