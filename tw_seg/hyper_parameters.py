"""Hyper-parameters as names and numbers, so that a checkpoint loads with ``weights_only=True``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from tw_seg.errors import InputError


def make_plain(value: Any, name: str) -> Any:
    """The same value by names and numbers only.

    A dataclass, such as `tw_seg.lrp.Schedule`, becomes the mapping of its fields, a path its name and a number
    of numpy one of Python.

    Args:
        value: What a caller gave; mappings, lists and tuples are followed.
        name: Name of the argument, for the message.

    Raises:
        InputError: For anything else, which a checkpoint could not hold; names the place.

    Examples:
        >>> from tw_seg.lrp import Schedule
        >>> make_plain({"schedule": Schedule(recompute=True)}, "decoder_kwargs")["schedule"]["recompute"]
        True
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise _refuse(f"the key {key!r} in {name}")
        return {key: make_plain(entry, f"{name}.{key}") for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(make_plain(entry, f"{name}[{i}]") for i, entry in enumerate(value))
    if value is not None and type(value) not in (str, bool, int, float):
        raise _refuse(f"{value!r} in {name}")
    return value


def _refuse(what: str) -> InputError:
    return InputError(
        "hyper-parameters must be names and numbers, so that checkpoints load with weights_only=True, got "
        f"{what}: give 'package.module:NAME', the place of an object, or of a mapping as a whole (custom_rules)"
    )
