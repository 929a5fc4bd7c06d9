"""The agent's configuration: /etc/virtagent/guest.toml, overruled by the command line.

Whatever the file says must mean something: an unknown table or key is an error, since it is most
likely a misspelt one, and a policy that silently does not apply is worse than an agent that does not start.
This module is read before trio is imported, so that a mistake is told at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from virtagent_protocol.address import AddressError, parse_address

from .events.sources.settings import NAMES, THRESHOLD_MAX, THRESHOLD_MIN, EventSettings
from .forward.settings import ForwardSettings
from .freeze.hooks import HookSettings
from .local import DEFAULT_SOCKET, SOCKET_VARIABLE
from .policy.settings import PolicySettings
from .session.clipboard_settings import DIRECTIONS, ClipboardSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

DEFAULT_FILE = "/etc/virtagent/guest.toml"
DEFAULT_PORT = "/dev/virtio-ports/org.qemu.virtagent"
#: The port of QEMU's own guest agent.
QGA_PORT = "/dev/virtio-ports/org.qemu.guest_agent.0"
DEFAULT_EXTENSIONS = "/etc/virtagent/methods.d"
DEFAULT_SPEED = 38400

#: Kind of channel → its default path; None: a path must be given.
CHANNEL_KINDS: dict[str, str | None] = {
    "virtio-serial": DEFAULT_PORT,
    "isa-serial": None,
    "unix-connect": None,
    "unix-listen": None,
    "none": "",
}

#: Number of ports → what each path ends in. Of two, the first is for the host's calls, the other for ours.
PORTS: dict[str, tuple[str, ...]] = {"one": ("",), "two": ("-server", "-client")}

#: Speeds a serial line can be set to, in bits per second: those every termios has.
SPEEDS = (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400)

#: Table → key → type; also the list of what there is, for messages.
_SCHEMA: dict[str, dict[str, type]] = {
    "channel": {"kind": str, "path": str, "speed": int, "ports": str},
    "log": {"verbose": bool},
    "qga": {"kind": str, "path": str, "speed": int},
    "policy": {"file": str, "allow-rpcs": list, "block-rpcs": list},
    "freeze": {"hook": str, "hook-dir": str, "hook-timeout": int},
    "extensions": {"directory": str},
    "local": {"socket": str},
    "session": {"clipboard": str, "clipboard-max-size": int},
    "events": {"off": list, "filesystem-threshold": int},
}


class ConfigError(Exception):
    """The configuration or the command line makes no sense; the message names the file and the key."""


@dataclass(frozen=True)
class Channel:
    """Which channel to serve.

    Attributes:
        kind: one of `CHANNEL_KINDS`.
        path: the device or socket.
        speed: of a serial line, in bits per second.
        ports: one of `PORTS`: whether each direction's calls have a channel of their own.
    """

    kind: str = "virtio-serial"
    path: str = DEFAULT_PORT
    speed: int = DEFAULT_SPEED
    ports: str = "one"

    def each(self) -> list[Channel]:
        """Return this channel as single ones, one for each port; none for the kind ``none``."""
        if self.kind == "none":
            return []
        return [replace(self, path=self.path + suffix, ports="one") for suffix in PORTS[self.ports]]


def _default_socket() -> str:
    # Set and empty means none.
    return os.environ.get(SOCKET_VARIABLE, DEFAULT_SOCKET)


@dataclass(frozen=True)
class Config:
    """All settings of the agent.

    Attributes:
        channel: for the agent's own link.
        verbose: log debug messages, too.
        policy: what the host may call.
        qga: for clients of QEMU's guest agent.
        hooks: what to call before and after a freeze.
        forwards: where connections are passed on to services of the host.
        extensions: directory of files that become methods; "": none.
        socket: where programs of the guest reach the agent; "": nowhere.
        events: which built-in events are told.
        clipboard: of the sessions: what of it is shared. For session agents, who read this file, too.
    """

    channel: Channel = Channel()
    verbose: bool = False
    policy: PolicySettings = field(default_factory=PolicySettings)
    qga: Channel = Channel("none", QGA_PORT)
    hooks: HookSettings = field(default_factory=HookSettings)
    forwards: tuple[ForwardSettings, ...] = ()
    extensions: str = DEFAULT_EXTENSIONS
    socket: str = field(default_factory=_default_socket)
    events: EventSettings = field(default_factory=EventSettings)
    clipboard: ClipboardSettings = field(default_factory=ClipboardSettings)


def load(file: str | None) -> Config:
    """Read the configuration.

    Args:
        file: as the user named it; None: `DEFAULT_FILE`, which need not exist.

    Raises:
        ConfigError: it cannot be read, or says something unknown.
    """
    name = DEFAULT_FILE if file is None else file
    try:
        with open(name, "rb") as opened:
            tables = tomllib.load(opened)
    except FileNotFoundError:
        if file is None:
            return Config()
        raise ConfigError(f"{name} does not exist") from None
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not TOML: {error}") from error
    forwards = _forwards(name, tables.pop("forward", []))
    _check(name, tables)
    given = tables.get("channel", {})
    try:
        channel = choose_channel(
            Channel(), given.get("kind"), given.get("path"), given.get("speed"), given.get("ports")
        )
    except ConfigError as error:
        raise ConfigError(f"{name}: table [channel]: {error}") from None
    given = tables.get("qga", {})
    try:
        qga = choose_qga(Config().qga, given.get("kind"), given.get("path"), given.get("speed"))
    except ConfigError as error:
        raise ConfigError(f"{name}: table [qga]: {error}") from None
    return Config(
        channel,
        tables.get("log", {}).get("verbose", False),
        policy=_policy(name, tables.get("policy", {})),
        qga=qga,
        hooks=_hooks(name, tables.get("freeze", {})),
        forwards=forwards,
        extensions=_extensions(name, tables.get("extensions", {})),
        socket=_socket(name, tables.get("local", {})),
        events=_events(name, tables.get("events", {})),
        clipboard=_clipboard(name, tables.get("session", {})),
    )


def _forwards(name: str, entries: Any) -> tuple[ForwardSettings, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{name}: 'forward' must be an array of tables: write [[forward]]")
    forwards = []
    for entry in entries:
        if set(entry) != {"listen", "service"} or not all(isinstance(text, str) for text in entry.values()):
            raise ConfigError(f"{name}: [[forward]] has two keys, both strings: 'listen' and 'service'")
        try:
            forwards.append(ForwardSettings(parse_address(entry["listen"], listening=True), entry["service"]))
        except AddressError as error:
            raise ConfigError(f"{name}: 'listen' in [[forward]]: {error}") from None
    return tuple(forwards)


def _hooks(name: str, table: dict[str, Any]) -> HookSettings:
    default = HookSettings()
    timeout = table.get("hook-timeout", default.timeout)
    if timeout < 1:
        raise ConfigError(f"{name}: 'hook-timeout' in [freeze] must be at least 1 (second)")
    return HookSettings(table.get("hook", default.hook), table.get("hook-dir", default.directory), timeout)


def _extensions(name: str, table: dict[str, Any]) -> str:
    path = str(table.get("directory", DEFAULT_EXTENSIONS))
    if path and not path.startswith("/"):
        raise ConfigError(f"{name}: 'directory' in [extensions] must be an absolute path, or \"\" for none")
    return path


def _socket(name: str, table: dict[str, Any]) -> str:
    path = str(table.get("socket", _default_socket()))
    if path and not path.startswith("/"):
        raise ConfigError(f"{name}: 'socket' in [local] must be an absolute path, or \"\" for none")
    return path


def _events(name: str, table: dict[str, Any]) -> EventSettings:
    off = table.get("off", [])
    for event in off:
        if event not in NAMES:
            there = _listed(NAMES)
            raise ConfigError(f"{name}: 'off' in [events]: no such event: {event!r}; the events are {there}")
    threshold = table.get("filesystem-threshold", EventSettings().threshold)
    if not THRESHOLD_MIN <= threshold <= THRESHOLD_MAX:
        raise ConfigError(
            f"{name}: 'filesystem-threshold' in [events] must be {THRESHOLD_MIN} to {THRESHOLD_MAX} (percent)"
        )
    return EventSettings(tuple(off), threshold)


def _clipboard(name: str, table: dict[str, Any]) -> ClipboardSettings:
    default = ClipboardSettings()
    clipboard, size = (
        table.get("clipboard", default.clipboard),
        table.get("clipboard-max-size", default.size_max),
    )
    if clipboard not in DIRECTIONS:
        raise ConfigError(f"{name}: 'clipboard' in [session] must be one of {_listed(DIRECTIONS)}")
    if size < 1:
        raise ConfigError(f"{name}: 'clipboard-max-size' in [session] must be at least 1 (byte)")
    return ClipboardSettings(clipboard, size)


def _policy(name: str, table: dict[str, Any]) -> PolicySettings:
    for key in ("allow-rpcs", "block-rpcs"):
        if not all(isinstance(method, str) for method in table.get(key, [])):
            raise ConfigError(f"{name}: '{key}' in [policy] must be an array of names")
    allow = table.get("allow-rpcs")
    return PolicySettings(
        file=table.get("file"),
        allow=None if allow is None else tuple(allow),
        block=tuple(table.get("block-rpcs", [])),
    )


def dump(config: Config) -> str:
    """Return the configuration as a file that says the same, as qemu-ga's --dump-conf does."""
    policy = config.policy
    tables: dict[str, dict[str, Any]] = {
        "channel": asdict(config.channel),
        "log": {"verbose": config.verbose},
        "qga": {"kind": config.qga.kind, "path": config.qga.path, "speed": config.qga.speed},
        "policy": {
            "file": policy.file,
            "allow-rpcs": policy.allow,
            "block-rpcs": policy.block,
        },
        "freeze": {
            "hook": config.hooks.hook,
            "hook-dir": config.hooks.directory,
            "hook-timeout": config.hooks.timeout,
        },
        "extensions": {"directory": config.extensions},
        "local": {"socket": config.socket},
        "session": {
            "clipboard": config.clipboard.clipboard,
            "clipboard-max-size": config.clipboard.size_max,
        },
        "events": {"off": config.events.off, "filesystem-threshold": config.events.threshold},
    }
    lines = []
    for table, keys in tables.items():
        lines += ["", f"[{table}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in keys.items() if value is not None]
    for forward in config.forwards:
        lines += ["", "[[forward]]", f"listen = {_toml(str(forward.listen))}"]
        lines += [f"service = {_toml(forward.service)}"]
    return "\n".join(lines[1:]) + "\n"


def _toml(value: Any) -> str:
    # JSON's forms of these values are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def choose_channel(
    base: Channel,
    kind: str | None,
    path: str | None,
    speed: int | None = None,
    ports: str | None = None,
) -> Channel:
    """Return *base* with what is given replaced.

    A path belongs to a kind: with a new kind and no path, the new kind's default applies.

    Args:
        base: what holds where nothing is given.
        kind: of the channel, or in the old form ``KIND:PATH`` or ``KIND:PATH:-``.
        path: the device or socket.
        speed: of a serial line.
        ports: one of `PORTS`.

    Raises:
        ConfigError: no such kind, speed or number of ports, or a path is missing.
    """
    if kind is not None:
        kind, _, path_in_kind = kind.partition(":")
        if kind not in CHANNEL_KINDS:
            raise ConfigError(f"no such channel: {kind!r}; the channels are {_listed(CHANNEL_KINDS)}")
        path = path or re.sub(":-?$", "", path_in_kind) or None
        if path is None and kind != base.kind:
            path = CHANNEL_KINDS[kind]
            if path is None:
                raise ConfigError(f"channel {kind} needs a path: give it with -p, or as 'path' in [channel]")
    if speed is not None and speed not in SPEEDS:
        raise ConfigError(f"no such speed: {speed}; the speeds are {_listed(SPEEDS)}")
    if ports is not None and ports not in PORTS:
        raise ConfigError(f"no such number of ports: {ports!r}; it is {' or '.join(PORTS)}")
    return replace(
        base,
        kind=kind or base.kind,
        path=path or base.path,
        speed=speed or base.speed,
        ports=ports or base.ports,
    )


def choose_qga(base: Channel, kind: str | None, path: str | None = None, speed: int | None = None) -> Channel:
    """Return *base*, the channel for clients of QEMU's guest agent, with what is given replaced.

    Args:
        base: what holds where nothing is given.
        kind: of the channel, or ``KIND:PATH``.
        path: the device or socket.
        speed: of a serial line.

    Raises:
        ConfigError: see `choose_channel`.
    """
    name, _, rest = (kind or "").partition(":")
    if name == "virtio-serial" and rest in ("", "-"):
        path = path or QGA_PORT
    elif CHANNEL_KINDS.get(name, "") is None and not (rest or path):
        raise ConfigError(f"{name} needs a path: --qga {name}:PATH, or 'path' in [qga]")
    return choose_channel(base, kind, path, speed)


def _check(name: str, tables: dict[str, Any]) -> None:
    for table, keys in tables.items():
        if table not in _SCHEMA:
            there = _listed([*_SCHEMA, "forward"])
            raise ConfigError(f"{name}: no such table or key: {table!r}; the tables are {there}")
        if not isinstance(keys, dict):
            raise ConfigError(f"{name}: {table!r} must be a table: write [{table}]")
        known = _SCHEMA[table]
        for key, value in keys.items():
            if key not in known:
                raise ConfigError(f"{name}: no such key in [{table}]: {key!r}; the keys are {_listed(known)}")
            # Not isinstance(): true would pass for a number.
            if type(value) is not known[key]:
                raise ConfigError(f"{name}: '{key}' in [{table}] must be {_TYPE_WORDS[known[key]]}")


_TYPE_WORDS = {str: "a string", int: "a number", bool: "a truth value (true or false)", list: "an array"}


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)
