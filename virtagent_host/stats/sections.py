"""The sections of a record: apart, for the table of commands must be quick to import."""

from __future__ import annotations

#: In the order in which they are told.
SECTIONS = (
    *("uptime", "load", "cpu", "memory", "swap", "pressure", "disks", "filesystems", "network", "processes"),
)
