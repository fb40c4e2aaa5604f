"""Objects of other packages by name, so that hyper-parameters stay strings."""

from __future__ import annotations

import importlib
from typing import Any

from tw_seg.errors import InputError


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
