"""Checks of the arguments that a decoder is made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tw_seg.arguments import is_number
from tw_seg.errors import InputError


def check_names(**values: object) -> None:
    """Check that each argument is a string."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{name} must be one name, got {value!r}")


def check_mappings(**values: object) -> None:
    """Check that each argument is a mapping or ``None``."""
    for name, value in values.items():
        if not isinstance(value, Mapping | None):
            raise InputError(f"{name} must be a mapping or None, got {value!r}")


def list_places(read_out: Any) -> tuple[str | float, ...]:
    """The places to read, of one or several."""
    several = isinstance(read_out, Sequence) and not isinstance(read_out, str)
    places = tuple(read_out) if several else (read_out,)
    if not all(isinstance(place, str) or is_number(place) for place in places):
        raise InputError(
            f"read_out must be 'input', the name of a module or call, a fraction of the depth, or a list of these, got "
            f"{read_out!r}"
        )
    return places


def check_size(size: Any) -> tuple[int, int]:
    """Height and width in pixels."""
    pair = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and is_number(side) and side >= 1 for side in pair):
        raise InputError(f"image_size must be (height, width) in pixels, or None, got {size!r}")
    return pair[0], pair[1]
