"""Two clipboards kept alike, played: which of them counts, what is carried how often, what fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
import trio.testing

from virtagent_protocol.clipboard.contents import Blob, Contents, TooLarge
from virtagent_protocol.clipboard.sync import BURST, RATE, Carried, Direction, Side, Synchroniser
from virtagent_protocol.errors import LinkBroken, NotReady, VirtagentError

TO, FROM = Direction.TO_GUEST, Direction.FROM_GUEST
BOTH = frozenset(Direction)


def text(words: str) -> Contents:
    return Contents({"text/plain": Blob.of(words.encode())} if words else {})


class PlayedClipboard(Side):
    """A clipboard that does as it is told."""

    def __init__(self) -> None:
        self.contents = Contents()
        self.written: list[str] = []
        self.fetched = 0
        self.trouble: VirtagentError | None = None
        self.lost: LinkBroken | None = None
        self.on_fetch: Callable[[], None] = lambda: None
        self._changes = 0
        self._changed = trio.Event()

    @property
    def changes(self) -> int:
        return self._changes

    async def wait_change(self, seen: int) -> int:
        while self._changes == seen:
            if self.lost is not None:
                raise self.lost
            await self._changed.wait()
        return self._changes

    def copy(self, words: str) -> None:
        self._set(text(words))

    def note(self) -> None:
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()

    def _set(self, contents: Contents) -> None:
        self.contents = contents
        self.note()

    async def fetch(self, patterns: Sequence[str], limit: int, known: Contents) -> Contents:
        await trio.lowlevel.checkpoint()
        self.fetched += 1
        self.on_fetch()
        if self.trouble is not None:
            raise self.trouble
        return self.contents

    async def write(self, contents: Contents) -> None:
        await trio.lowlevel.checkpoint()
        if self.trouble is not None:
            raise self.trouble
        self.written.append(contents["text/plain"].bytes().decode())
        self._set(contents)

    @property
    def words(self) -> str:
        return self.contents["text/plain"].bytes().decode() if self.contents else ""


class Table:
    """Both, and what was reported."""

    def __init__(self) -> None:
        self.host, self.guest = PlayedClipboard(), PlayedClipboard()
        self.reported: list[Carried] = []
        self.ended: list[LinkBroken] = []

    @asynccontextmanager
    async def running(self, directions: frozenset[Direction] = BOTH) -> AsyncIterator[None]:
        synchroniser = Synchroniser(self.host, self.guest, directions, self.reported.append)

        async def run() -> None:
            try:
                await synchroniser.run()
            except LinkBroken as error:
                self.ended.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()

    @property
    def words(self) -> tuple[str, str]:
        return self.host.words, self.guest.words


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_what_is_copied_at_one_end_is_carried_to_the_other_once(autojump_clock: trio.abc.Clock) -> None:
    table = Table()
    async with table.running():
        table.host.copy("one")
        await settle()
        table.guest.copy("two")
        await settle()
        assert table.words == ("two", "two")
    assert (table.host.written, table.guest.written) == (["two"], ["one"])
    assert [carried.direction for carried in table.reported] == [TO, FROM]


async def test_if_both_have_changed_the_hosts_counts_at_the_start_and_later() -> None:
    table = Table()
    table.guest.copy("the guest's")
    table.host.copy("the host's")
    async with table.running():
        assert table.words == ("the host's", "the host's")
        table.guest.copy("the guest's again")
        table.host.copy("the host's again")
        await settle()
        assert table.words == ("the host's again", "the host's again")
    assert table.host.written == []


async def test_a_change_of_the_hosts_while_the_guests_is_fetched_counts() -> None:
    table = Table()
    async with table.running():
        table.guest.on_fetch = lambda: table.host.copy("just now") if table.host.words == "" else None
        table.guest.copy("the guest's")
        await settle()
        assert table.words == ("just now", "just now")
        assert table.host.written == []


async def test_what_the_host_has_emptied_meanwhile_does_not_hide_what_the_guest_has() -> None:
    table = Table()
    async with table.running():
        table.guest.on_fetch = lambda: table.host.copy("") if table.guest.fetched == 1 else None
        table.guest.fetched = 0
        table.guest.copy("the guest's")
        await settle()
        assert table.words == ("the guest's", "the guest's")


async def test_an_empty_clipboard_is_not_carried() -> None:
    table = Table()
    async with table.running():
        table.host.copy("one")
        await settle()
        table.host.copy("")
        await settle()
        assert table.words == ("", "one")
        table.host.copy("one")
        await settle()
    assert table.guest.written == ["one"], "what the guest has already was carried again"


async def test_a_direction_that_is_off_carries_nothing() -> None:
    for direction in Direction:
        table = Table()
        async with table.running(frozenset({direction})):
            target, source = (table.guest, table.host) if direction is TO else (table.host, table.guest)
            target.copy("kept")
            await settle()
            assert source.words == ""
            source.copy("carried")
            await settle()
            assert target.words == "carried"
            assert source.written == []


async def test_what_cannot_be_carried_is_reported_and_the_next_is_carried(
    autojump_clock: trio.abc.Clock,
) -> None:
    table = Table()
    async with table.running():
        table.host.trouble = TooLarge("too large")
        table.host.copy("large")
        await settle()
        assert [str(carried.error) for carried in table.reported] == ["too large"] * len(table.reported)
        table.host.trouble = None
        table.host.copy("small")
        await settle()
        assert table.words == ("small", "small")


async def test_what_the_guest_was_not_there_for_is_carried_when_it_is_heard_of_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    table = Table()
    async with table.running():
        table.guest.trouble = NotReady("rebooting")
        table.host.copy("meanwhile")
        await settle()
        assert table.guest.written == []
        table.guest.trouble = None
        table.guest.note()
        await trio.sleep(10)
        assert table.words == ("meanwhile", "meanwhile")


async def test_a_guest_that_changes_all_the_time_is_heard_at_a_rate_and_the_host_is_not_held_up(
    autojump_clock: trio.abc.Clock,
) -> None:
    table = Table()
    async with table.running():
        for number in range(1000):
            table.guest.copy(f"flood {number}")
            await trio.sleep(0.01)
        assert len(table.host.written) <= BURST + 10 * RATE + 1
        table.host.copy("the user's")
        await trio.sleep(2)
        assert table.guest.words == "the user's"


async def test_a_display_that_is_lost_ends_it() -> None:
    table = Table()
    async with table.running():
        table.host.lost = LinkBroken("the X server has ended")
        table.host.note()
        await settle()
    assert [str(error) for error in table.ended] == ["the X server has ended"]
