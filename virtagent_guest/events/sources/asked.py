"""Who asked for a shutdown, as far as this agent saw it.

systemd and logind tell that a shutdown begins, and not who asked. This agent knows of two who are not in the
guest: the host, which called it, and whoever pressed the power button. They leave a note here before anything
begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds for which a note is about the shutdown that begins. A slow guest takes its time until then.
LASTS = 60.0

HOST = "host"
POWER_BUTTON = "power-button"
#: Neither of them: a user, a program, a timer.
GUEST = "guest"


class Asked:
    """The last note.

    Args:
        clock: seconds that do not go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._who = GUEST
        self._mode: str | None = None
        self._at = -LASTS

    def note(self, who: str, mode: str | None = None) -> None:
        """Take note that *who* asks for a shutdown now.

        Args:
            who: `HOST` or `POWER_BUTTON`.
            mode: as in `va.shutdown`, if it was told.
        """
        self._who, self._mode, self._at = who, mode, self._clock()

    def take_back(self) -> None:
        """Nothing will come of what was noted."""
        self._at = -LASTS

    def last(self) -> tuple[str, str | None]:
        """Return who asked for the shutdown that begins now, and the mode if it was told."""
        if self._clock() - self._at >= LASTS:
            return GUEST, None
        return self._who, self._mode


#: Of this guest.
ASKED = Asked()
