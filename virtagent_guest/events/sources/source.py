"""What all sources share: how they tell, and how text that others chose gets into an event."""

from __future__ import annotations

import logging
from collections.abc import Callable

from virtagent_protocol.text import visible_line
from virtagent_protocol.values import Struct

log = logging.getLogger("virtagent.events")

#: Puts an event: its name, and its data with the members that docs/events.md lists.
Emit = Callable[[str, Struct], object]

#: Characters of one text in an event, which holds 8 KiB. A path may have 4096, and none that matters has.
TEXT_MAX = 512


def plain(text: str) -> str:
    """Return text that somebody in the guest chose, fit for an event: visible, and not too long."""
    return visible_line(text[:TEXT_MAX])[:TEXT_MAX]
