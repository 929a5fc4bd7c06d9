"""Text from a guest on a terminal (virtagent_protocol.text)."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtagent_protocol.text import VisibleDecoder, visible, visible_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("\x7f\x00\r\x08", "\\x7f\\x00\\r\\x08"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("a\u200bb\u2066c\ufeff", "a\\u200bb\\u2066c\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
    ],
)
def test_what_acts_unseen_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_letters_of_any_script_and_spaces_of_any_width_stay() -> None:
    text = "Grüße, 日本語, \u00a0 \u3000 ½ €"
    assert visible(text) == text


def test_layout_stays_in_running_text_and_is_shown_in_a_line() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible_line("a\tb\nc") == "a\\tb\\nc"


@given(st.text(st.characters()))
def test_no_text_leaves_a_character_that_could_act(text: str) -> None:
    for char in visible_line(text):
        assert char.isprintable() or unicodedata.category(char) == "Zs"


@given(st.binary(), st.integers(min_value=0, max_value=20))
def test_bytes_in_parts_show_as_the_same_bytes_at_once(data: bytes, cut: int) -> None:
    decoder = VisibleDecoder()
    shown = decoder.decode(data[:cut]) + decoder.decode(data[cut:], final=True)
    assert shown == visible(data.decode("utf-8", "backslashreplace"))


def test_a_character_cut_in_two_parts_is_whole_again() -> None:
    decoder = VisibleDecoder()
    assert decoder.decode("€".encode()[:1]) == ""
    assert decoder.decode("€".encode()[1:] + b"\xff", final=True) == "€\\xff"
