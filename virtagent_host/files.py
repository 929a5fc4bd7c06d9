"""`va_read_tree`, `va_write_tree`, `va_ls` and their like: their entries for the table of `commands`.

The service knows nothing of files. It pumps what comes between the client's descriptor and the stream, whose
records (SPEC.md section 13) the client and the guest's agent write and read. It opens no path for a client.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

from virtagent_protocol.errors import RemoteProtocolError
from virtagent_protocol.values import Struct, Value, as_struct, member

from .command import Argument, Arguments, Client, Command, InvalidArguments, VirtualMachine
from .joining import join

#: Seconds for what looks at one path, and for a transfer to begin.
TIMEOUT = 15.0
#: Seconds to remove a tree.
REMOVE_TIMEOUT = 300.0
#: Tells a client that its transfer was cut: {fd, kind, reason}.
BROKEN_EVENT = "VA_TRANSFER_BROKEN"

ENCODINGS = ("utf8", "base64")


async def read_tree(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_read_tree`."""
    options: Struct = {"recursive": arguments["recursive"]}
    answer = await _transfer("va.read_tree", options, vm, arguments, client)
    kind = member(answer, "type", str)
    if kind not in ("file", "directory"):
        raise RemoteProtocolError(f"va.read_tree answered with type {kind!r:.40}")
    return {"type": kind, **({"size": member(answer, "size", int)} if "size" in answer else {})}


async def write_tree(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_write_tree`."""
    options: Struct = {"resume": arguments["resume"], "preserve": arguments["preserve"]}
    if arguments["into"] is not None:
        options["into"] = _name(arguments, "into")
    answer = await _transfer("va.write_tree", options, vm, arguments, client)
    return {"path": _json_name(answer.get("path"))}


async def _transfer(
    method: str, options: Struct, vm: VirtualMachine, arguments: Arguments, client: Client
) -> Struct:
    if arguments["digest"] is not None:
        options["digests"] = [arguments["digest"]]
    name, fd = arguments["fd"], client.take_fd(arguments["fd"])
    try:
        options["path"] = _name(arguments, "path")
    except InvalidArguments:
        os.close(fd)
        raise
    return await join(vm, method, options, name, fd, client, BROKEN_EVENT)


async def ls(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_ls`."""
    after = _name(arguments, "after") if arguments["after"] is not None else b""
    answer = as_struct(await vm.call("va.list", _name(arguments, "path"), after), "the answer to va.list")
    return {
        "directory": member(answer, "directory", bool),
        "more": member(answer, "more", bool),
        "entries": [_entry(entry) for entry in member(answer, "entries", list)],
    }


async def stat(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_stat`."""
    return _entry(await vm.call("va.stat", _name(arguments, "path"), arguments["follow"]))


async def mkdir(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_mkdir`."""
    await vm.call("va.mkdir", _name(arguments, "path"), arguments["parents"])
    return {}


async def rm(vm: VirtualMachine, arguments: Arguments, client: Client) -> object:
    """Handle `va_rm`."""
    removed = await vm.call("va.remove", _name(arguments, "path"), arguments["recursive"])
    if not isinstance(removed, int):
        raise RemoteProtocolError("the answer to va.remove must be a number")
    return {"removed": removed}


def _name(arguments: Arguments, argument: str) -> Value:
    """Return a path as the guest takes it: base64 for whatever XML may not carry as a string."""
    text: str = arguments[argument]
    try:
        if arguments["encoding"] == "base64":
            return base64.b64decode(text, validate=True)
        return text if text.isprintable() else text.encode()
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidArguments(f"Parameter '{argument}' is not {arguments['encoding']}") from None


def _json_name(value: Value) -> str | dict[str, str]:
    """Return a name of the guest's as JSON: a string, or {"base64": …} if it is not UTF-8."""
    if not isinstance(value, (str, bytes)):
        raise RemoteProtocolError("a name must be string or base64")
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode("ascii")}  # type: ignore[arg-type]


def _entry(value: Value) -> dict[str, Any]:
    entry = as_struct(value, "an entry")
    described: dict[str, Any] = {"name": _json_name(entry.get("name"))}
    for name in ("type", "user", "group"):
        described[name] = member(entry, name, str)
    for name in ("mode", "size", "mtime_ns", "uid", "gid", "links"):
        described[name] = member(entry, name, int)
    if not 0 <= described["mode"] <= 0o7777:
        raise RemoteProtocolError("the mode of an entry is out of bounds")
    if "target" in entry:
        described["target"] = _json_name(entry["target"])
    return described


def _flag(name: str, help: str) -> Argument:
    return Argument(name, "boolean", help, optional=True, default=False)


def _timeout(default: float = TIMEOUT) -> Argument:
    return Argument("timeout", "number", "seconds to wait", optional=True, default=default, minimum=0)


_PATH = Argument("path", "string", "absolute path in the guest")
_ENCODING = Argument(
    "encoding",
    "string",
    "how paths are given: base64 for names that are not UTF-8",
    optional=True,
    default="utf8",
    choices=ENCODINGS,
)
_FD = Argument("fd", "string", "a connected socket: name under which getfd handed it over")
_DIGEST = Argument(
    "digest",
    "string",
    "the only one to use; else what is fast at both ends",
    optional=True,
    choices=("sha256", "crc32"),
)

COMMANDS = (
    Command(
        "va_read_tree",
        "Begin to send a file or tree of the guest over a descriptor, as a tree stream.",
        "{type: 'file' or 'directory', size: of a file}; VA_TRANSFER_BROKEN tells if it is cut",
        "va_read_tree /var/log/syslog va_socket",
        read_tree,
        (_PATH, _FD, _flag("recursive", "whether it may be a directory"), _DIGEST, _ENCODING, _timeout()),
    ),
    Command(
        "va_write_tree",
        "Begin to receive a file or tree in the guest from a descriptor, as a tree stream.",
        "{path: where it goes}; VA_TRANSFER_BROKEN tells if it is cut",
        "va_write_tree /srv/data va_socket",
        write_tree,
        (
            _PATH,
            _FD,
            Argument("into", "string", "name that it gets if path is a directory", optional=True),
            _flag("resume", "whether to go on with what an earlier transfer left"),
            _flag("preserve", "whether to keep owners, and all bits of modes"),
            _DIGEST,
            _ENCODING,
            _timeout(),
        ),
    ),
    Command(
        "va_ls",
        "List a directory of the guest, a page at a time.",
        "{directory: whether it is one, entries: [as of va_stat…], more: whether there are any}",
        "va_ls /var/log",
        ls,
        (
            _PATH,
            Argument("after", "string", "name behind which the page begins", optional=True),
            _ENCODING,
            _timeout(),
        ),
    ),
    Command(
        "va_stat",
        "Describe a file, directory or link of the guest.",
        "{name, type, mode, size, mtime_ns, uid, gid, user, group, links, target: of a link}",
        "va_stat /etc/os-release",
        stat,
        (_PATH, _flag("follow", "whether to follow a symbolic link"), _ENCODING, _timeout()),
    ),
    Command(
        "va_mkdir",
        "Make a directory in the guest.",
        "{}",
        "va_mkdir /srv/new",
        mkdir,
        (_PATH, _flag("parents", "make those above it, too; it may be there already"), _ENCODING, _timeout()),
    ),
    Command(
        "va_rm",
        "Remove a file of the guest, or a directory with all that is in it.",
        "{removed: how many entries}",
        "va_rm /srv/old recursive=true",
        rm,
        (
            _PATH,
            _flag("recursive", "whether it may be a directory"),
            _ENCODING,
            _timeout(REMOVE_TIMEOUT),
        ),
    ),
)
