"""The command for a guest's clipboard."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import click

from virtagent_protocol.clipboard.contents import SIZE_MAX
from virtagent_protocol.clipboard.mime import PATTERNS, TEXT, is_name, is_pattern, plain_name, wanted
from virtagent_protocol.errors import NotThere

from ..clipboard import TIMEOUT
from ..frontend.output import PROGRAM, put, put_bytes, put_json
from .common import Invocation, examples, json_option, session_option, timeout_option, vm_argument

if TYPE_CHECKING:
    from virtagent_protocol.clipboard.contents import Blob, Contents
    from virtagent_protocol.clipboard.sync import Carried
    from virtagent_protocol.errors import VirtagentError

ACTIONS = ("get", "set", "sync")
_MIB = 1024 * 1024
_READ_SIZE = 256 * 1024


def _patterns(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> list[str]:
    for word in words:
        if not is_pattern(word):
            raise click.BadParameter(f"{word!r} is no MIME type, nor a pattern such as image/*", ctx, param)
    return [word.lower() for word in words]


@click.command(
    help="""Read or set the clipboard of a user's session in the guest, or keep it and yours alike.

    get writes what it holds to stdout, of the types asked for the first that there is; set puts stdin there.
    sync runs until Ctrl-C, and carries what is copied at one end to the other: to the clipboard of
    $WAYLAND_DISPLAY or $DISPLAY, as the user who runs it. If both ends have changed, the host's counts.

    The guest shares its clipboard only if its guest.toml says so: clipboard = "both" in [session], or
    "to-guest", or "from-guest".""",
    epilog=examples(
        "va-host clipboard demo get",
        "va-host clipboard demo set --type image/png < picture.png",
        "va-host clipboard demo sync --to-guest",
    ),
)
@vm_argument(*ACTIONS)
@click.argument("action", type=click.Choice(ACTIONS))
@session_option()
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    callback=_patterns,
    help="MIME type, or a pattern such as image/*; may be repeated. Without: text, HTML and an image (get, "
    "sync); text/plain (set).",
)
@click.option("--list", "list_types", is_flag=True, help="get: print the types that there are instead.")
@click.option("--to-guest", is_flag=True, help="sync: only this way.")
@click.option("--from-guest", is_flag=True, help="sync: only this way.")
@click.option(
    "--max-size",
    type=click.IntRange(1),
    metavar="MIB",
    default=SIZE_MAX // _MIB,
    show_default=True,
    help="Larger contents are refused. The guest has a limit of its own.",
)
@timeout_option(TIMEOUT, "How long to wait for the guest to begin.")
@json_option("get --list: one JSON object; sync: one a line, for all that is carried")
@click.pass_obj
def clipboard(
    invocation: Invocation,
    name: str | None,
    action: str,
    types: list[str],
    list_types: bool,
    to_guest: bool,
    from_guest: bool,
    max_size: int,
    timeout: float,
) -> None:
    if list_types and action != "get":
        raise click.UsageError("--list goes with get")
    if (to_guest or from_guest) and action != "sync":
        raise click.UsageError("--to-guest and --from-guest go with sync")
    limit = max_size * _MIB
    if action == "get" and list_types:
        _list(invocation, name, timeout)
    elif action == "get":
        _get(invocation, name, types, limit, timeout)
    elif action == "set":
        _set(invocation, name, types, limit, timeout)
    else:
        _sync(invocation, name, types, limit, timeout, (to_guest, from_guest))


def _list(invocation: Invocation, name: str | None, timeout: float) -> None:
    from ..frontend import clipboard as bridge

    with invocation.connect(name) as client:
        offered = [plain_name(offered) for offered in bridge.types(client, {}, timeout)]
    found = list(dict.fromkeys(plain for plain in offered if plain is not None))
    if invocation.json:
        put_json({"types": found})
        return
    for plain in found:
        put(plain)


def _get(invocation: Invocation, name: str | None, types: list[str], limit: int, timeout: float) -> None:
    from ..frontend import clipboard as bridge

    with invocation.connect(name) as client:
        # Only the one that is written need come.
        offered = bridge.types(client, {}, timeout)
        for kind in wanted(offered, types or PATTERNS):
            contents = bridge.get(client, {"types": [kind]}, limit, timeout)
            if kind in contents:
                put_bytes(contents[kind].pieces())
                return
            break  # there is something else by now
    what = f"nothing of type {', '.join(types)}" if types else "neither text nor HTML nor an image"
    raise NotThere(f"the guest's clipboard holds {what}: see get --list")


def _set(invocation: Invocation, name: str | None, types: list[str], limit: int, timeout: float) -> None:
    from virtagent_protocol.clipboard.contents import Contents

    from ..frontend import clipboard as bridge

    kind = types[0] if types else TEXT
    if len(types) > 1 or not is_name(kind):
        raise click.UsageError("set takes one type, and no pattern")
    if sys.stdin is None:
        raise click.UsageError("stdin is closed")
    blob = _stdin(limit)
    if kind == TEXT and not _is_text(blob):
        raise click.UsageError(f"stdin is not UTF-8, as {TEXT} is here: say what it is with --type")
    with invocation.connect(name) as client:
        bridge.put(client, Contents({kind: blob}), {}, timeout)


def _stdin(limit: int) -> Blob:
    from virtagent_protocol.clipboard.contents import Allowance, Blob

    blob, allowance = Blob(), Allowance(limit)
    while data := sys.stdin.buffer.read(_READ_SIZE):
        allowance.take(len(data))
        blob.append(data)
    return blob


def _is_text(blob: Blob) -> bool:
    try:
        blob.bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def _sync(
    invocation: Invocation,
    name: str | None,
    types: list[str],
    limit: int,
    timeout: float,
    only: tuple[bool, bool],
) -> None:
    import trio

    from virtagent_protocol.clipboard.backend import open_clipboard
    from virtagent_protocol.clipboard.sync import Direction, Synchroniser
    from virtagent_protocol.nursery import plain_nursery

    from ..frontend.guestclipboard import GuestClipboard

    both = only[0] == only[1]
    switches = {Direction.TO_GUEST: both or only[0], Direction.FROM_GUEST: both or only[1]}
    directions = frozenset(direction for direction, on in switches.items() if on)
    vm = invocation.choose(name)

    def tell(carried: Carried) -> None:
        _tell(carried, as_json=invocation.json)

    async def run() -> int:
        ended = 0
        guest = GuestClipboard(lambda: invocation.connect(vm), timeout, _warn)
        async with plain_nursery() as nursery:

            async def until_signal(task_status: trio.TaskStatus[None]) -> None:
                nonlocal ended
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    task_status.started()
                    async for number in signals:
                        # What a shell reports for a program that the signal has ended.
                        ended = 128 + number
                        nursery.cancel_scope.cancel()

            await nursery.start(until_signal)
            async with open_clipboard() as host:
                if Direction.FROM_GUEST in directions:
                    await nursery.start(guest.watch)
                synchroniser = Synchroniser(
                    host, guest, directions, tell, patterns=types or PATTERNS, limit=limit
                )
                if not invocation.json:
                    ways = ", ".join(sorted(way.value for way in directions))
                    put(f"syncing the clipboard with '{vm}': {ways}")
                    sys.stdout.flush()
                await synchroniser.run()
        return ended

    invocation.status = trio.run(run)


def _tell(carried: Carried, *, as_json: bool) -> None:
    way = carried.direction.value
    if carried.error is not None and not as_json:
        _warn(carried.error, way)
    elif as_json:
        entries = [
            {"type": name, "size": blob.size, "sha256": blob.sha256}
            for name, blob in carried.contents.items()
        ]
        error = carried.error
        told = {"error": {"kind": error.kind.value, "message": str(error)}} if error else {}
        put_json({"direction": way, "types": entries, **told})
    else:
        put(f"{way}: {_described(carried.contents)}")
    sys.stdout.flush()


def _described(contents: Contents) -> str:
    return ", ".join(f"{name} ({blob.size} bytes)" for name, blob in contents.items())


def _warn(error: VirtagentError, what: str = "the guest's clipboard") -> None:
    from virtagent_protocol.text import visible_line

    sys.stderr.write(f"{PROGRAM}: {what}: {error.kind.value}: {visible_line(str(error))}\n")
    sys.stderr.flush()


COMMANDS = (clipboard,)
