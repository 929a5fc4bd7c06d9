"""`va-guest extensions`: what the files in the directory are, for those who write them. It asks no agent."""

from __future__ import annotations

import argparse
import os
import sys

from virtagent_protocol.text import visible, visible_line

from ..config import DEFAULT_FILE, ConfigError, load
from .directory import Directory

EXIT_PROBLEMS, EXIT_USAGE = 1, 2


def main(argv: list[str]) -> int:
    """Run `va-guest extensions` with what follows these words; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="va-guest extensions",
        description="List the extensions, and the files that are none because something is wrong with them.",
        epilog="exit status: 0 all is well, 1 something is wrong with a file, 2 usage or configuration",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=f"read FILE, not {DEFAULT_FILE}")
    parser.add_argument("directory", nargs="?", metavar="DIRECTORY", help="not that of the configuration")
    options = parser.parse_args(argv)
    try:
        path = options.directory or load(options.config).extensions
    except ConfigError as error:
        print(f"va-guest: {visible_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    if not os.path.isdir(path):
        print(f"va-guest: there is no directory {visible_line(path)!r}, so no extensions", file=sys.stderr)
    contents = Directory(path).look()
    for extension in contents.extensions.values():
        print(f"{extension.signature}\n    {visible(extension.help).splitlines()[0]}")
    for problem in contents.problems:
        print(f"va-guest: {visible_line(str(problem))}", file=sys.stderr)
    return EXIT_PROBLEMS if contents.problems else 0
