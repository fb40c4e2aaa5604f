"""What the configuration of a run would have imported, for a run that somebody else made."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tw_seg.errors import InputError
from tw_seg.models.by_name import list_code
from tw_seg.plain_files import read_yaml

TRUST_CODE = "--trust_code"

_OURS = ("tw_seg", "pytorch_lightning")
_FILES = (
    "encoder_weights",
    "warm_start",
    "extend",
    "ckpt_path",
    "run_dir",
    "default_root_dir",
    "dirpath",
    "save_dir",
    "groups",
)
"""Arguments that name files which hold no options."""


def add_trust_code(parser: ArgumentParser) -> None:
    """Add the option that allows code which a checkpoint names."""
    parser.add_argument(
        TRUST_CODE,
        action="store_true",
        help="import code that the checkpoint names, as package.module:factory: if it is yours or you know it",
    )


def list_config_code(config: Path) -> list[str]:
    """What a ``config.yaml`` names of code, beside this package and Lightning, and of further files of options.

    Where a class is asked for, jsonargparse imports whatever path it finds, or reads a file of that name. Options of
    the data are names and numbers only.

    Raises:
        InputError: The file cannot be read, or is no configuration.
    """
    try:
        content = read_yaml(config)
    except (OSError, ValueError) as error:
        raise InputError(f"{config}: cannot be read as a configuration ({error})") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{config}: expected the options of a run, found {type(content).__name__}")
    options = {key: value for key, value in content.items() if key != "data"}
    found = list_code(options.get("model"))
    return found + [text for text in _list_texts(options) if _is_import(text) or _is_file(text, config.parent)]


def _list_texts(options: Any) -> Iterator[str]:
    if isinstance(options, Mapping):
        for key, value in options.items():
            if key not in _FILES:
                yield from _list_texts(value)
    elif isinstance(options, list):
        for value in options:
            yield from _list_texts(value)
    elif isinstance(options, str):
        yield options


def _is_import(text: str) -> bool:
    """Whether a text is a path of Python that leads into an installed module of somebody else's."""
    parts = text.split(".")
    if len(parts) < 2 or parts[0] in _OURS or not all(part.isidentifier() for part in parts):
        return False
    try:
        return find_spec(parts[0]) is not None
    except (ImportError, ValueError):
        return True


def _is_file(text: str, folder: Path) -> bool:
    try:
        return any(place.is_file() for place in (Path(text), folder / text))
    except (OSError, ValueError):
        return False
