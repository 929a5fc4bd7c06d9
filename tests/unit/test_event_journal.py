"""The host's journal of a guest's events."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtagent_host.events import journal as journal_module
from virtagent_host.events.journal import Journal, JournalError


def entries(*numbers: int) -> list[dict[str, object]]:
    return [{"n": n} for n in numbers]


def read(journal: Journal, since: int = 0, count: int = 1000) -> list[tuple[int, int]]:
    return [(entry["position"], entry["n"]) for entry in journal.read(since, count)]


@pytest.mark.parametrize("named", [True, False])
def test_entries_are_read_back_from_any_position_on(tmp_path: Path, named: bool) -> None:
    journal = Journal(tmp_path / "vm.events" if named else None)
    assert (journal.last, journal.oldest, read(journal)) == (0, 1, [])
    journal.append(entries(10, 11))
    journal.append(entries(12))
    assert read(journal) == [(1, 10), (2, 11), (3, 12)]
    assert read(journal, 1) == [(2, 11), (3, 12)]
    assert read(journal, 1, 1) == [(2, 11)]
    assert read(journal, 3) == read(journal, 99) == []


def test_no_file_is_made_for_a_guest_that_tells_nothing(tmp_path: Path) -> None:
    Journal(tmp_path / "vm.events")
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_is_opened_again_goes_on(tmp_path: Path) -> None:
    Journal(tmp_path / "vm.events").append(entries(1, 2))
    journal = Journal(tmp_path / "vm.events")
    journal.append(entries(3))
    assert read(journal) == [(1, 1), (2, 2), (3, 3)]
    assert (tmp_path / "vm.events").stat().st_mode & 0o777 == 0o600


def test_it_is_bounded_and_positions_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "FILE_MAX", 1000)
    journal = Journal(tmp_path / "vm.events")
    for n in range(1, 301):
        journal.append(entries(n))
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2200
    for again in (journal, Journal(tmp_path / "vm.events")):
        held = read(again)
        assert held == [(n, n) for n in range(again.oldest, 301)]
        assert 200 < again.oldest < 290
        # Over the border between the two files as well.
        for since in range(again.oldest - 1, 301):
            assert read(again, since, 3) == [(n, n) for n in range(since + 1, min(since + 4, 301))]


def test_one_answer_is_bounded_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "READ_MAX", 200)
    monkeypatch.setattr(journal_module, "FILE_MAX", 300)
    journal = Journal(None)
    for n in range(1, 21):
        journal.append(entries(n))
    at, seen = journal.oldest - 1, 0
    while held := read(journal, at):
        assert len(held) <= 10
        assert held[0][0] == at + 1
        at, seen = held[-1][0], seen + len(held)
    assert at == 20


def test_a_line_that_was_cut_off_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "vm.events"
    Journal(path).append(entries(1, 2))
    data = path.read_bytes()
    second = data.index(b"\n") + 1
    for end in range(second, len(data)):
        path.write_bytes(data[:end])
        journal = Journal(path)
        assert read(journal) == [(1, 1)]
        journal.append(entries(9))
        assert read(journal) == [(1, 1), (2, 9)]


@pytest.mark.parametrize(
    "junk", [b"junk\n", b"[]\n", b"{}\n", b'{"position":0}\n', b'{"position":1}\n{"position":3}\n', b"\x00\n"]
)
def test_a_file_that_is_damaged_is_left_out(
    tmp_path: Path, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "vm.events"
    path.write_bytes(junk)
    journal = Journal(path)
    assert "these events are lost" in caplog.text
    journal.append(entries(1))
    assert read(journal) == read(Journal(path)) == [(1, 1)]


def test_of_a_write_that_fails_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "vm.events")
    journal.append(entries(1))
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: len(data) - 1)
        with pytest.raises(JournalError, match="No space left"):
            journal.append(entries(2))
    assert journal.last == 1
    journal.append(entries(3))
    assert read(journal) == read(Journal(tmp_path / "vm.events")) == [(1, 1), (2, 3)]
