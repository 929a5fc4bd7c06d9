"""The channels to the host: one module per kind, and the table that picks one."""

from __future__ import annotations

from ..config import Channel
from .base import Report, Transport
from .serial import SerialLine
from .unix import UnixConnect, UnixListen
from .virtio import VirtioPort, VirtioPortStream

__all__ = ["Report", "Transport", "VirtioPortStream", "make_transport"]


def make_transport(channel: Channel) -> Transport:
    """Return the transport for a configured channel; nothing is opened yet."""
    match channel.kind:
        case "virtio-serial":
            return VirtioPort(channel.path)
        case "isa-serial":
            return SerialLine(channel.path, channel.speed)
        case "unix-connect":
            return UnixConnect(channel.path)
        case "unix-listen":
            return UnixListen(channel.path)
        case kind:
            raise ValueError(f"no such kind of channel: {kind}")
