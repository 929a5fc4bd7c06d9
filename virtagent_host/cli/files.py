"""Commands for files: copy them to and from a guest, and look after those in it."""

from __future__ import annotations

import base64
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from virtagent_protocol.errors import EXIT_STATUS, FailureKind, VirtagentError
from virtagent_protocol.text import visible_line

from ..commands import COMMANDS as TABLE
from ..files import REMOVE_TIMEOUT, TIMEOUT
from ..frontend.listing import name_bytes, put_entries, put_name, shown, shown_time
from ..frontend.output import on_terminal, put_error, put_json
from ..runtime import BadName, check_name
from .common import Invocation, examples, json_option, session_option, timeout_option

if TYPE_CHECKING:
    from ..frontend.client import VmClient
    from ..frontend.transfer import Outcome

_REMOTE = re.compile(r"([^/:]*):(.*)", re.DOTALL)


@dataclass(frozen=True)
class _Path:
    """A path in a guest (`vm` is its name, "" for the only one) or on this machine (None)."""

    vm: str | None
    path: bytes

    @property
    def is_pipe(self) -> bool:
        return self.vm is None and self.path == b"-"

    @property
    def name(self) -> str | None:
        return self.vm or None

    @property
    def last(self) -> bytes:
        """The last name in it; nothing if it has none."""
        name = os.path.basename(self.path.rstrip(b"/"))
        return b"" if name in (b".", b"..") else name


def _parse(text: str) -> _Path:
    match = _REMOTE.fullmatch(text)
    if match is None:
        return _Path(None, os.fsencode(text))
    vm, path = match[1], os.fsencode(match[2])
    try:
        if vm:
            check_name(vm)
    except BadName as error:
        raise click.UsageError(f"{text}: {error}; a local file of such a name is ./{text}") from None
    if not path.startswith(b"/"):
        raise click.UsageError(f"{text}: a path in a guest must be absolute, such as {vm}:/tmp")
    return _Path(vm, path)


def _parse_remote(ctx: click.Context, param: click.Parameter, text: str) -> _Path:
    path = _parse(text)
    if path.vm is None:
        raise click.UsageError(f"{text}: say which guest's: NAME:/PATH")
    return path


def _given(path: bytes, name: str = "path") -> dict[str, object]:
    """Return a path as arguments of a `va_*` command."""
    try:
        return {name: path.decode()}
    except UnicodeDecodeError:
        return {name: base64.b64encode(path).decode("ascii"), "encoding": "base64"}


_remote_argument = click.argument("path", metavar="NAME:/PATH", callback=_parse_remote)


@click.command(
    help="""Copy a file or tree to or from a guest.

    One of SRC and DST is NAME:/PATH, the other a local path, or - for stdin or stdout. If DST is a directory,
    SRC goes into it (but see -T). Modes (less the umask) and times are kept.

    A file is written under a temporary name (.NAME.va-part), checked and flushed, and then renamed; so what
    is there under its own name is always whole. What is left of a large file that was cut is gone on with by
    --resume.""",
    epilog=examples(
        "va-host cp disk.img demo:/var/tmp/",
        "va-host cp -r demo:/var/log ./logs",
        "tar c src | va-host cp - demo:/tmp/src.tar",
        "va-host cp --resume demo:/srv/huge.img .",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("-r", "--recursive", is_flag=True, help="Copy directories, with all that is in them.")
@click.option(
    "-p",
    "--preserve",
    is_flag=True,
    help="Keep all bits of modes; owners, too, if the receiving end is root: by name, else by number.",
)
@click.option(
    "-T",
    "--no-target-directory",
    "exactly",
    is_flag=True,
    help="DST is the copy itself, though it is a directory: what is in it already is replaced or kept.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Send only what an earlier copy did not bring. For a tree whose copy DST itself is, add -T.",
)
@click.option(
    "--digest",
    type=click.Choice(("auto", "sha256", "crc32")),
    default="auto",
    show_default=True,
    help="What both ends compare. auto is sha256, or crc32 if an end is slow at that (an emulated CPU).",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@timeout_option(TIMEOUT, "How long to wait until it begins.")
@json_option("one JSON object: entries, bytes, kept, failed, errors, notes, digest, seconds")
@session_option()
@click.pass_obj
def cp(
    invocation: Invocation,
    source: str,
    destination: str,
    recursive: bool,
    preserve: bool,
    exactly: bool,
    resume: bool,
    digest: str,
    quiet: bool,
    timeout: float,
) -> None:
    origin, target = _parse(source), _parse(destination)
    if (origin.vm is None) is (target.vm is None):
        both = "both are local" if origin.vm is None else "both are in guests"
        raise click.UsageError(f"one of SRC and DST must be NAME:/PATH, and the other local: {both}")
    if resume and (origin.is_pipe or target.is_pipe):
        raise click.UsageError("a pipe cannot be gone on with: --resume is for files")
    job = _Copy(
        origin, target, recursive, preserve, exactly, resume, None if digest == "auto" else digest, quiet
    )
    begun = time.monotonic()
    with invocation.connect(origin.name if origin.vm is not None else target.name) as client:
        outcome = job.upload(client, timeout) if origin.vm is None else job.download(client, timeout)
    _report(invocation, outcome, time.monotonic() - begun)


@dataclass(frozen=True)
class _Copy:
    source: _Path
    target: _Path
    recursive: bool
    preserve: bool
    exactly: bool
    resume: bool
    digest: str | None
    quiet: bool

    def upload(self, client: VmClient, timeout: float) -> Outcome:
        from virtagent_protocol.trees.pack import Packer, Source

        from ..frontend.progress import Progress
        from ..frontend.transfer import upload

        pipe = self.source.is_pipe
        source = (
            Source.of_fd(sys.stdin.fileno()) if pipe else Source(self.source.path, recursive=self.recursive)
        )
        arguments = {
            **_given(self.target.path),
            "resume": self.resume,
            "preserve": self.preserve,
            **self._digest(),
        }
        last = self.source.last or os.path.basename(os.path.realpath(self.source.path))
        if last and not pipe and not self.exactly:
            arguments |= _given(last, "into")
            if "encoding" in arguments:
                arguments |= {
                    "path": base64.b64encode(self.target.path).decode("ascii"),
                    "into": base64.b64encode(last).decode("ascii"),
                }
        packer = Packer(source, self._digests())
        try:
            with Progress(os.fsdecode(self.source.path), packer.sent, quiet=self.quiet):
                return upload(client, packer, arguments, timeout)
        finally:
            if not pipe:
                source.close()

    def download(self, client: VmClient, timeout: float) -> Outcome:
        from virtagent_protocol.trees.pipe import PipeUnpacker, ReaderGone
        from virtagent_protocol.trees.place import open_place
        from virtagent_protocol.trees.unpack import Unpacker

        from ..frontend.progress import Progress
        from ..frontend.transfer import download

        unpacker: Unpacker
        if self.target.is_pipe:
            sys.stdout.flush()
            unpacker = PipeUnpacker(sys.stdout.fileno(), self._digests())
        else:
            into = b"" if self.exactly else self.source.last or (self.source.name or "guest").encode()
            place = open_place(self.target.path, into)
            unpacker = Unpacker(place, resume=self.resume, preserve=self.preserve, digests=self._digests())
        arguments = {**_given(self.source.path), "recursive": self.recursive, **self._digest()}
        quiet = self.quiet or (self.target.is_pipe and on_terminal())
        try:
            with Progress(os.fsdecode(self.source.path), unpacker.received, quiet=quiet):
                return download(client, unpacker, arguments, timeout)
        except ReaderGone:
            raise BrokenPipeError(32, "Broken pipe") from None

    def _digests(self) -> list[str] | None:
        return None if self.digest is None else [self.digest]

    def _digest(self) -> dict[str, object]:
        return {} if self.digest is None else {"digest": self.digest}


def _report(invocation: Invocation, outcome: Outcome, seconds: float) -> None:
    if outcome.failed or outcome.fatal:
        kind = FailureKind.BROKEN if outcome.mismatched else FailureKind.REFUSED
        invocation.status = EXIT_STATUS[kind]
    if invocation.json:
        put_json(_document(outcome, seconds))
        return
    for path, reason in outcome.notes:
        sys.stderr.write(f"{shown(path)}: {visible_line(reason)}\n")
    for path, reason in outcome.errors:
        put_error(VirtagentError(f"{os.fsdecode(path)}: {reason}" if path else reason))
    if outcome.failed > len(outcome.errors):
        put_error(VirtagentError(f"and {outcome.failed - len(outcome.errors)} more could not be copied"))
    if outcome.fatal:
        put_error(VirtagentError(f"the copy was given up: {outcome.fatal}"))


def _document(outcome: Outcome, seconds: float) -> dict[str, Any]:
    from virtagent_protocol.trees.entries import to_json

    def pairs(told: list[tuple[bytes, str]]) -> list[dict[str, object]]:
        return [{"path": to_json(path), "reason": reason} for path, reason in told]

    return {
        "entries": outcome.entries,
        "bytes": outcome.size,
        "kept": outcome.kept,
        "failed": outcome.failed,
        "errors": pairs(outcome.errors),
        "notes": pairs(outcome.notes),
        "fatal": outcome.fatal or None,
        "digest": {"name": outcome.digest_name, "value": outcome.digest or None},
        "seconds": round(seconds, 3),
    }


@click.command(
    help="List a directory of a guest, or describe what else has this path.",
    epilog=examples("va-host ls demo:/etc", "va-host ls -l demo:/var/log"),
)
@_remote_argument
@click.option("-l", "long", is_flag=True, help="Show mode, links, owner, size and time, too.")
@timeout_option(TIMEOUT, "How long to wait for each 1000 entries.")
@json_option('a JSON array of entries; a name that is not UTF-8 is {"base64": …}')
@session_option()
@click.pass_obj
def ls(invocation: Invocation, path: _Path, long: bool, timeout: float) -> None:
    from ..frontend.fetch import call

    entries: list[dict[str, Any]] = []
    arguments = {"path": base64.b64encode(path.path).decode("ascii"), "encoding": "base64"}
    with invocation.connect(path.name) as client:
        while True:
            page = call(client, "va_ls", {**arguments}, timeout)
            entries += page["entries"]
            if not invocation.json:
                put_entries(page["entries"], long=long)
            if not page["more"] or not page["entries"]:
                break
            arguments["after"] = base64.b64encode(name_bytes(page["entries"][-1]["name"])).decode("ascii")
    if invocation.json:
        put_json(entries)


@click.command(help=TABLE["va_stat"].help, epilog=examples("va-host stat demo:/etc/os-release --json"))
@_remote_argument
@click.option("-L", "--follow", is_flag=True, help="Follow a symbolic link.")
@timeout_option(TIMEOUT, "How long to wait for the answer.")
@json_option("one JSON object")
@session_option()
@click.pass_obj
def stat(invocation: Invocation, path: _Path, follow: bool, timeout: float) -> None:
    entry = _call(invocation, path, "va_stat", timeout, follow=follow)
    if invocation.json:
        put_json(entry)
        return
    entry["mode"] = f"{entry['mode']:04o}"
    entry["modified"] = shown_time(entry.pop("mtime_ns"), "%Y-%m-%d %H:%M:%S")
    for name, value in entry.items():
        put_name(
            f"{name}: ".encode() + (name_bytes(value) if name in ("name", "target") else str(value).encode())
        )


@click.command(help=TABLE["va_rm"].help, epilog=examples("va-host rm -r demo:/srv/old"))
@_remote_argument
@click.option("-r", "--recursive", is_flag=True, help="Remove a directory, with all that is in it.")
@timeout_option(REMOVE_TIMEOUT, "How long it may take.")
@json_option("one JSON object: removed")
@session_option()
@click.pass_obj
def rm(invocation: Invocation, path: _Path, recursive: bool, timeout: float) -> None:
    result = _call(invocation, path, "va_rm", timeout, recursive=recursive)
    if invocation.json:
        put_json(result)


@click.command(help=TABLE["va_mkdir"].help, epilog=examples("va-host mkdir -p demo:/srv/a/b"))
@_remote_argument
@click.option("-p", "--parents", is_flag=True, help="Make those above it, too; it may be there already.")
@timeout_option(TIMEOUT, "How long to wait for the answer.")
@session_option()
@click.pass_obj
def mkdir(invocation: Invocation, path: _Path, parents: bool, timeout: float) -> None:
    _call(invocation, path, "va_mkdir", timeout, parents=parents)


def _call(invocation: Invocation, path: _Path, command: str, timeout: float, **arguments: object) -> Any:
    from ..frontend.fetch import call

    with invocation.connect(path.name) as client:
        return call(client, command, {**_given(path.path), **arguments}, timeout)


COMMANDS = (cp, ls, stat, rm, mkdir)
