"""The agent's configuration: /etc/virtagent/guest.toml, overruled by the command line.

Whatever the file says must mean something: an unknown table or key is an error, since it is most
likely a misspelt one, and a policy that silently does not apply is worse than an agent that does not start.
This module is read before trio is imported, so that a mistake is told at once.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

DEFAULT_FILE = "/etc/virtagent/guest.toml"
DEFAULT_PORT = "/dev/virtio-ports/org.qemu.virtagent"
DEFAULT_SPEED = 38400

#: Kind of channel → its default path; None: a path must be given.
CHANNEL_KINDS: dict[str, str | None] = {
    "virtio-serial": DEFAULT_PORT,
    "isa-serial": None,
    "unix-connect": None,
    "unix-listen": None,
}

#: Number of ports → what each path ends in. Of two, the first is for the host's calls, the other for ours.
PORTS: dict[str, tuple[str, ...]] = {"one": ("",), "two": ("-server", "-client")}

#: Speeds a serial line can be set to, in bits per second: those every termios has.
SPEEDS = (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400)

#: Table → key → type; also the list of what there is, for messages.
_SCHEMA: dict[str, dict[str, type]] = {
    "channel": {"kind": str, "path": str, "speed": int, "ports": str},
    "log": {"verbose": bool},
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
        """Return this channel as single ones, one for each port."""
        return [replace(self, path=self.path + suffix, ports="one") for suffix in PORTS[self.ports]]


@dataclass(frozen=True)
class Config:
    """All settings of the agent."""

    channel: Channel = Channel()
    verbose: bool = False


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
    _check(name, tables)
    given = tables.get("channel", {})
    try:
        channel = choose_channel(
            Channel(), given.get("kind"), given.get("path"), given.get("speed"), given.get("ports")
        )
    except ConfigError as error:
        raise ConfigError(f"{name}: table [channel]: {error}") from None
    return Config(channel, tables.get("log", {}).get("verbose", False))


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


def _check(name: str, tables: dict[str, Any]) -> None:
    for table, keys in tables.items():
        if table not in _SCHEMA:
            raise ConfigError(f"{name}: no such table or key: {table!r}; the tables are {_listed(_SCHEMA)}")
        if not isinstance(keys, dict):
            raise ConfigError(f"{name}: {table!r} must be a table: write [{table}]")
        known = _SCHEMA[table]
        for key, value in keys.items():
            if key not in known:
                raise ConfigError(f"{name}: no such key in [{table}]: {key!r}; the keys are {_listed(known)}")
            # Not isinstance(): true would pass for a number.
            if type(value) is not known[key]:
                raise ConfigError(f"{name}: '{key}' in [{table}] must be a {_TYPE_WORDS[known[key]]}")


_TYPE_WORDS = {str: "string", int: "number", bool: "truth value (true or false)"}


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)
