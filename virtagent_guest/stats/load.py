"""Sections load and uptime, from /proc/loadavg and /proc/uptime (proc(5))."""

from __future__ import annotations

from virtagent_protocol.values import Struct

from . import procfs

LOADAVG, UPTIME = "/proc/loadavg", "/proc/uptime"


def take_load() -> str:
    """Read /proc/loadavg now."""
    return procfs.read(LOADAVG)


def describe_load(text: str) -> Struct:
    """Return the section load."""
    one, five, fifteen, tasks = text.split()[:4]
    running, _, threads = tasks.partition("/")
    return {
        "avg1": float(one),
        "avg5": float(five),
        "avg15": float(fifteen),
        "running": int(running),
        "threads": int(threads),
    }


def take_uptime() -> str:
    """Read /proc/uptime now."""
    return procfs.read(UPTIME)


def describe_uptime(text: str) -> float:
    """Return the section uptime: seconds since boot."""
    return float(text.split()[0])
