"""A policy in a real guest: put there, loaded by systemd, seen from the host, and taken away again."""

from __future__ import annotations

import re

from tests.guest.lab import Attached

RULES = """\
default = "allow"

[[rule]]
name = "no passwords"
action = "deny"
methods = ["*"]
read = ["/etc/shadow*"]

[[rule]]
name = "stays up"
action = "deny"
methods = ["va.shutdown", "guest-shutdown"]
"""


async def reload_with(attached: Attached, rules: str) -> None:
    """Put a policy in its place, or none, and let systemd load it; return when the agent has."""
    write = (
        f"cat >/etc/virtagent/policy.toml <<'END'\n{rules}END" if rules else "rm /etc/virtagent/policy.toml"
    )
    loaded = "journalctl -u va-guest -o cat | grep -c '^policy: '"
    before = (await attached.vm.console(loaded)).output.strip()
    await attached.in_guest(f"{write}\nsystemctl reload va-guest")
    await attached.in_guest(f"until [ $({loaded}) -gt {before} ]; do sleep 0.1; done")


async def test_what_a_policy_forbids_is_told_with_one_id_on_both_ends(attached: Attached) -> None:
    lab = attached.lab
    await reload_with(attached, RULES)
    try:
        for path in ("/etc/shadow", "/proc/1/root/etc/shadow", "/root/../etc//shadow-"):
            said = await lab.fail(5, "viewfile", path)
            assert "forbidden: blocked by the guest's policy: rule 'no passwords'" in said
        assert "root:" in await lab.succeed("viewfile", "/etc/passwd")
        assert "rule 'stays up'" in await lab.fail(5, "shutdown", "powerdown")

        tags = re.findall(
            r"va\.(?:getfile|shutdown) (\S+): forbidden by the other end", attached.service.said
        )
        assert len(set(tags[-4:])) == 4
        for tag in tags[-4:]:
            await attached.in_guest(
                f"journalctl -u va-guest -o cat | grep -F ' {tag}: forbidden: blocked by'"
            )

        assert re.search("it forbids [12] of .* altogether: .*va.shutdown", await lab.succeed("doctor"))
        why = await attached.vm.console("va-guest policy why va.getfile /proc/1/root/etc/shadow")
        assert why.status == 5
        assert "forbidden by 'no passwords' (/etc/virtagent/policy.toml, line 3)" in why.output
    finally:
        await reload_with(attached, "")
    await lab.succeed("viewfile", "/etc/shadow")
