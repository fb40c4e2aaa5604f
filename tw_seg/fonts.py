"""Fonts for names in any script, in pictures that matplotlib draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib import font_manager

_BOXES = "Last Resort"  # beginnings of the name of a font that has a box for every character


@contextmanager
def show_characters(texts: Iterable[str]) -> Iterator[None]:
    """Draw the texts made inside with fonts that have all their characters, as far as such are installed.

    A dollar sign is one, and begins no formula.

    Args:
        texts: What is going to be drawn.
    """
    with matplotlib.rc_context({"font.family": choose_fonts(texts), "text.parse_math": False}):
        yield


def choose_fonts(texts: Iterable[str]) -> list[str]:
    """Names of the default fonts, and of installed ones for the characters that those lack.

    Args:
        texts: What is going to be drawn.
    """
    families = [*matplotlib.rcParams["font.family"]]
    default = font_manager.findfont(font_manager.FontProperties(family=families))
    missing = {ord(letter) for text in texts for letter in text if letter.isprintable()} - _list_characters(default)
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.weight != 400, entry.name)):
        if not missing:
            break
        if entry.style == "normal" and not entry.name.startswith(_BOXES) and missing & _list_characters(entry.fname):
            families.append(entry.name)
            missing -= _list_characters(entry.fname)
    return families


def _list_characters(path: str) -> set[int]:
    return set(font_manager.get_font(path).get_charmap())
