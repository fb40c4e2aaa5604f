"""What a terminal would obey is an escape, all else stays; for every character of Unicode."""

from __future__ import annotations

import sys
import unicodedata

from tw_seg.printable import is_control, make_printable


def test_every_character():
    letters = list(map(chr, range(sys.maxunicode + 1)))
    controls = {letter for letter in letters if is_control(letter)}
    assert {*map(chr, range(32)), "\x7f", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\udc80"} <= controls
    assert all(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in controls)
    assert not any(is_control(letter) for letter in " aé木\u00a0\u200c\u200d\u3000🐈<>&$|")
    text = make_printable("".join(controls))
    assert text.isascii() and text.isprintable()
    others = "".join(letter for letter in letters if letter not in controls)
    assert make_printable(others) == others


def test_what_is_kept():
    assert make_printable("a\nb\tc\x1b[2J", keep="\n") == "a\nb\\tc\\x1b[2J"
