"""Where a policy comes from, as guest.toml and the command line tell; read before anything else is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: The file of rules that is read if none is named; it need not exist.
DEFAULT_FILE = "/etc/virtagent/policy.toml"


@dataclass(frozen=True)
class PolicySettings:
    """The lists of qemu-ga, and the file of rules.

    Attributes:
        file: of rules, as named; None: `DEFAULT_FILE`, if it is there.
        allow: names of methods; all others are refused. None: there is no such list.
        block: names of methods that are refused, whatever *allow* says.
    """

    file: str | None = None
    allow: tuple[str, ...] | None = None
    block: tuple[str, ...] = ()

    def with_lists(self, allow: list[str] | None, block: list[str] | None) -> PolicySettings:
        """Return these with the command line's lists added: as with qemu-ga, lists accumulate.

        Args:
            allow: comma-separated lists of names, one for each time that the option was given.
            block: the same.
        """
        allowed = self.allow if allow is None else (self.allow or ()) + _names(allow)
        return replace(self, allow=allowed, block=self.block + _names(block or []))


def _names(lists: list[str]) -> tuple[str, ...]:
    return tuple(name for one in lists for name in one.split(",") if name)
