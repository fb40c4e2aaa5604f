from __future__ import annotations

import pytest
from matplotlib import font_manager

from tw_seg.fonts import choose_fonts, show_characters


def covers(families: list[str], letter: str) -> bool:
    return any(
        ord(letter) in font_manager.get_font(entry.fname).get_charmap()
        for entry in font_manager.fontManager.ttflist
        if entry.name in families and entry.style == "normal"
    )


def test_the_default_font_is_enough_for_most_of_europe():
    assert choose_fonts(["Kuh, vache, корова, αγελάδα\n"]) == choose_fonts([])


def test_an_installed_font_has_what_the_default_lacks():
    letter = "\u20d2"  # in STIXGeneral, which matplotlib brings
    assert not covers(choose_fonts([]), letter)
    assert covers(choose_fonts(["cow", f"a{letter}"]), letter)


def test_a_character_that_no_font_has_changes_nothing():
    assert choose_fonts(["\U0003fffd"]) == choose_fonts([])


@pytest.mark.parametrize("letter", ["\u20d2", "k"])
def test_texts_made_inside_have_these_fonts(letter):
    from matplotlib.figure import Figure

    with show_characters([letter]):
        text = Figure().text(0, 0, letter)
    assert text.get_fontfamily() == choose_fonts([letter])
    assert Figure().text(0, 0, letter).get_fontfamily() == choose_fonts([])
