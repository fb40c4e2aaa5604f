"""Texts from elsewhere, such as names of files and classes, without what a terminal or a page would obey."""

from __future__ import annotations

import unicodedata

_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, separators of lines and paragraphs
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # turn the text


def make_printable(text: str, *, keep: str = "") -> str:
    r"""The text with control characters as escapes: no colour, no new line, no other direction of writing.

    Args:
        text: Any text.
        keep: Control characters that stay, such as the ends of lines of a text of ours.

    Examples:
        >>> make_printable("a\x1b[31m\nb é")
        'a\\x1b[31m\\nb é'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or not is_control(letter) else _escape(letter) for letter in text)


def is_control(letter: str) -> bool:
    """Whether a character is obeyed instead of being shown."""
    return unicodedata.category(letter) in _CATEGORIES or letter in _TURNS


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
