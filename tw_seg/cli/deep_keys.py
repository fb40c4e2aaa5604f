"""Options that set a key deep inside a mapping: ``--model.model_kwargs.decoder_kwargs.read_out layer3``.

jsonargparse sets a key of a mapping alone, ``--model.model_kwargs.scale 2``, but for a key of a mapping in it replaces
that inner mapping as a whole, and leaves the value a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

_DEEP_KEY = re.compile(r"--((?:model|data)\.\w+?_kwargs)\.(\w+)\.(\w+(?:\.\w+)*)(?:=(.*))?", re.DOTALL)
"""The option that is a mapping, a key in it, further keys inside that, and the value if it follows a ``=``."""


def merge_deep_keys(parser: ArgumentParser, args: Sequence[str]) -> list[str]:
    """Replace options that set deep keys by options that set one key: the merged mapping.

    Args:
        parser: The parser with its commands, which says what the mappings hold without these options.
        args: The arguments.

    Returns:
        Arguments for the same parser; the merged mappings come last.
    """
    others, deep = split_deep_keys(args)
    if not deep:
        return others
    config = parser.parse_args([arg for arg in others if not re.match(r"--(print_config|help)", arg)])
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for option, key, inner, text in deep:
        if (option, key) not in merged:
            present = (config[config["subcommand"]][option] or {}).get(key) or {}
            merged[option, key] = json.loads(json.dumps(present))
        target = merged[option, key]
        *path, last = inner.split(".")
        for name in path:
            target = target.setdefault(name, {})
        target[last] = _read_value(text)
    return [*others, *(f"--{option}.{key}={json.dumps(value)}" for (option, key), value in merged.items())]


def split_deep_keys(args: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str, str]]]:
    """Split arguments into those that set no deep key, and (option, key, keys inside it, value) of the others.

    Examples:
        >>> split_deep_keys(["fit", "--model.model_kwargs.decoder_kwargs.tie_weights", "false"])
        (['fit'], [('model.model_kwargs', 'decoder_kwargs', 'tie_weights', 'false')])
    """
    others, deep = [], []
    rest = iter(args)
    for arg in rest:
        match = _DEEP_KEY.fullmatch(arg)
        text = match and (match[4] if match[4] is not None else next(rest, None))
        if match is None or text is None:
            others.append(arg)
        else:
            deep.append((match[1], match[2], match[3], text))
    return others, deep


def _read_value(text: str) -> Any:
    """A value as jsonargparse reads it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=Any)
    found: Namespace = parser.parse_args([f"--value={text}"])
    return found["value"]
