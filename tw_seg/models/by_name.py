"""Objects of other packages by name, so that hyper-parameters stay strings."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any

from tw_seg.errors import InputError

_NO_CODE = ("class_names", "classes", "encoder_weights", "warm_start")
"""Arguments that may hold a colon, as names of classes and files may, and of which nothing is imported."""


def import_object(place: str, argument: str, form: str) -> Any:
    """Import what stands at ``"package.module:NAME"``.

    Args:
        place: Where it is.
        argument: Name of the argument that gave the place, for the message.
        form: What the place must be, likewise.

    Raises:
        InputError: If it cannot be imported.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{argument}={place!r} must be {form} and importable: {error}. Install your package or put its folder on "
            "PYTHONPATH."
        ) from error


def list_code(arguments: Any) -> list[str]:
    """What the arguments of a model name of code, ``"package.module:NAME"``, at any depth: every text with a colon.

    Examples:
        >>> list_code({"encoder_name": "mine.nets:make", "decoder_kwargs": {"custom_rules": "mine:RULES"}})
        ['mine.nets:make', 'mine:RULES']
    """
    found, waiting = [], [arguments]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found += [value] if ":" in value else []
        elif isinstance(value, Mapping):
            waiting += [entry for key, entry in reversed(list(value.items())) if key not in _NO_CODE]
        elif isinstance(value, list | tuple):
            waiting += reversed(value)
    return found


def check_code(arguments: Any, *, source: str, trust_code: bool, known: Collection[str] = ()) -> None:
    """Refuse arguments from elsewhere that name code, before any of it is imported.

    Args:
        arguments: The arguments of a model.
        source: Where they come from, for the message.
        trust_code: Whether it may be imported.
        known: Code that the user has named as well.

    Raises:
        InputError: Names the code and the remedy.
    """
    refuse_code([place for place in list_code(arguments) if place not in known], source, trust_code)


def refuse_code(places: Collection[str], source: str, trust_code: bool) -> None:
    """Raise an `InputError` that names the code, if there is any, unless it is trusted."""
    if places and not trust_code:
        raise InputError(
            f"{source} names code to import, {', '.join(map(repr, dict.fromkeys(places)))}: if it is yours or you know "
            "it, add --trust_code, in Python trust_code=True"
        )
