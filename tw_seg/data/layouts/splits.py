"""Which images a split holds: those of a list, or a share of them by the hash of their names."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tw_seg.arguments import fill_in_options, is_number
from tw_seg.data.layouts.file_names import normalize_name, show_names, strip_suffix
from tw_seg.data.layouts.readers import check_unique, read_lines
from tw_seg.errors import DataError

SPLIT_BY: dict[str, Any] = {"files": None, "shares": None, "group": None, "seed": 0}
"""Names of the argument ``split_by`` of the layouts, and what holds without them; see `choose_rows`."""

_SPELLINGS = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "testing": "test",
}


def spell_split(split: str) -> str:
    """The name of a split that other spellings of it share.

    Examples:
        >>> spell_split("Validation"), spell_split("fold3")
        ('val', 'fold3')
    """
    lower = split.strip().lower()
    return _SPELLINGS.get(lower, lower)


def choose_rows(names: Sequence[str], split: str, split_by: Mapping[str, Any], *, root: Path) -> np.ndarray:
    """The images of a split, as ``split_by`` says.

    Args:
        names: Names of all images.
        split: Name of the split.
        split_by: One of ``files``, a text file with one name per line, below ``root``, in which ``{split}`` stands for
            the split; and ``shares``, the share of each split, as ``{"train": 0.8, "val": 0.2}``. With shares, an image
            belongs to a split by the hash of its group, of ``seed`` and of nothing else, so new images change no old
            one. ``group`` is a regular expression: what it matches at the beginning of a name, or the first pair of
            parentheses in that, is the group, which is never divided; without it each image is a group.
        root: The folder of the data set.

    Returns:
        Indices, int64, in the order of the names (with a file: in the order of its lines).

    Raises:
        DataError: If the split is empty or unknown, or ``split_by`` does not fit.
    """
    options = fill_in_options("split_by", split_by, SPLIT_BY)
    if (options["files"] is None) == (options["shares"] is None):
        raise DataError(f"split_by: expected one of files and shares, got {dict(split_by)}")
    if options["files"] is not None:
        return _read_rows(names, root / str(options["files"]).replace("{split}", split))
    return _hash_rows(names, split, _check_shares(options["shares"]), group=options["group"], seed=options["seed"])


def find_group(name: str, pattern: str | None) -> str:
    """The group of images that a name belongs to; see `choose_rows`.

    Raises:
        DataError: If the pattern is no regular expression, or matches nothing at the beginning of the name.

    Examples:
        >>> find_group("tree7_03", r"(.*)_"), find_group("tree7_03", None)
        ('tree7', 'tree7_03')
    """
    if pattern is None:
        return name
    try:
        match = re.match(pattern, name)
    except (re.error, TypeError) as error:
        raise DataError(f"split_by: group must be a regular expression, got {pattern!r} ({error})") from error
    if match is None:
        raise DataError(
            f"split_by: group {pattern!r} matches nothing at the beginning of the name {name!r}; correct it"
        )
    return match[1] if match.re.groups and match[1] is not None else match[0]


def _check_shares(shares: Any) -> dict[str, float]:
    fits = isinstance(shares, Mapping) and shares and all(is_number(v) and v > 0 for v in shares.values())
    if not fits or sum(shares.values()) > 1 + 1e-9:
        raise DataError(
            "split_by: shares must name splits with numbers above 0 that add up to at most 1, such as "
            f"{{train: 0.8, val: 0.2}}, got {shares!r}"
        )
    return dict(shares)


def _hash_rows(
    names: Sequence[str], split: str, shares: Mapping[str, float], *, group: str | None, seed: int
) -> np.ndarray:
    if split not in shares:
        raise DataError(f"split_by: shares have no split {split!r}; there are {', '.join(shares)}: add it")
    position = list(shares).index(split)
    ends = np.cumsum(list(shares.values()))
    start, end = (ends[position - 1] if position else 0.0), ends[position]
    places = np.array([_hash(f"{seed}/{find_group(name, group)}") for name in names])
    rows = np.flatnonzero((places >= start) & (places < end))
    if not len(rows):
        raise DataError(
            f"split_by: the split {split!r} is empty: no image of {len(names)} falls into a share of {shares[split]}; "
            "choose larger shares, smaller groups or another seed"
        )
    return rows


def _hash(text: str) -> float:
    """A number in [0, 1) that a text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _read_rows(names: Sequence[str], path: Path) -> np.ndarray:
    """The rows that a file lists: by name, with a suffix or without, or by its last part where one image has that."""
    lines = [normalize_name(line.strip()) for line in read_lines(path) if line.strip()]
    if not lines:
        raise DataError(f"{path}: the list is empty; write one image name per line")
    counts = Counter(Path(name).name for name in names)
    row_of = {Path(name).name: row for row, name in enumerate(names) if counts[Path(name).name] == 1}
    row_of |= {name: row for row, name in enumerate(names)}
    found = [row_of.get(line, row_of.get(strip_suffix(line))) for line in lines]
    lacking = [line for line, row in zip(lines, found, strict=True) if row is None]
    if lacking:
        raise DataError(
            f"{path}: {len(lacking)} of {len(lines)} names belong to no image ({show_names(lacking)}); the images here "
            f"are {show_names(names) or 'none'}: correct the list"
        )
    check_unique([names[row] for row in found if row is not None], path)
    return np.array(found, dtype=np.int64)
