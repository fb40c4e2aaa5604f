"""JSON and YAML files from elsewhere: names and numbers, of a size that a person or a program of ours may have written.

All that is wrong with such a file is an ``OSError`` or a ``ValueError``, never a full memory or stack.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

LARGEST_JSON = 2**28
LARGEST_YAML = 2**18
"""Bytes. PyYAML takes seconds for as much."""

_MOST_ALIASES = 30  # of aliases that hold aliases a few lines can stand for more than any memory
_DEEPEST = 100  # the time that PyYAML takes grows with the square of the depth


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no JSON in UTF-8, too large, or nested too deeply.
    """
    return parse_json(_read(Path(path), LARGEST_JSON))


def parse_json(text: str) -> Any:
    """What a text in JSON holds.

    Raises:
        ValueError: It is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a YAML file holds; tags that make objects of Python are refused.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no plain YAML in UTF-8, too large, nested too deeply or full of aliases.
    """
    text = _read(Path(path), LARGEST_YAML)
    try:
        _check_events(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError:
        raise
    except Exception as error:  # PyYAML's constructors, of a date or a number that is none
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _check_events(text: str) -> None:
    aliases = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        if aliases > _MOST_ALIASES:
            raise ValueError(f"it has more than {_MOST_ALIASES} aliases (*name): write out what they stand for")


def _read(path: Path, largest: int) -> str:
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"it has {size:,} bytes, and no such file has more than {largest:,}")
    return path.read_text(encoding="utf-8")
