"""Every command of QEMU's guest agent gets the same answer from va-guest, or what differs is explained."""

from __future__ import annotations

from pathlib import Path

from tests.guest.qga_compare import compare_in
from tests.guest.qga_page import page

PAGE = Path(__file__).parents[2] / "docs" / "qga.md"


async def test_both_agents_say_the_same_or_it_is_explained(tmp_path: Path) -> None:
    outcome = await compare_in(tmp_path)
    assert not outcome.problems, "\n".join(outcome.problems)
    told = page(outcome.version, outcome.asked, outcome.explained)
    assert PAGE.read_text() == told, f"{PAGE} is out of date: run make qga-table"
