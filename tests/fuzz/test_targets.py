"""The fuzz targets without a fuzzer: where it starts, and whatever it found once."""

from __future__ import annotations

import pytest

from tests.fuzz.seeds import dictionary, seeds
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_and_all_that_was_found_keep_every_promise(name: str) -> None:
    for data in [b"", *seeds(name)]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_has_words(name: str) -> None:
    assert all(line.startswith('"') and line.endswith('"') for line in dictionary(name).splitlines())


@pytest.mark.parametrize("name", ["link", "talk"])
def test_the_seeds_of_a_conversation_establish_sessions_and_answer_calls(name: str) -> None:
    counted = [TARGETS[name](data) for data in seeds(name)]
    assert sum(counters.sessions for counters in counted) >= 4
    assert sum(counters.calls["answered"] for counters in counted) >= 4
    assert sum(counters.served["ok"] for counters in counted) >= 2
