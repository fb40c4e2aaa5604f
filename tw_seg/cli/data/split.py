"""``tw-seg data split``: a data set divided into train, val and test, written where its layout reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser

from tw_seg.arguments import is_number
from tw_seg.cli.data import SUBCOMMANDS
from tw_seg.cli.data.arguments import add_data_arguments, add_near_duplicates, find_pixels, find_source, group_images
from tw_seg.data.check.table import format_table
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.data.opening import open_split, open_splits
from tw_seg.data.splitting.choose import choose_splits
from tw_seg.data.splitting.write import check_free, find_list_folder, list_taken, write_splits
from tw_seg.errors import DataError, InputError
from tw_seg.types import BACKGROUND

_DESCRIPTION = f"""tw-seg data split: {SUBCOMMANDS["split"].summary}. Near-duplicates stay together, and images with
the same value in --group_column; every class is spread as the shares say. Written is the column split of the folder
layout's table, the lists of VOC, or splits/NAME.txt. Example: tw-seg data split my_images --val_share 0.2 --seed 0"""


def run_split(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments.

    Returns:
        Exit status: 0.

    Raises:
        TwSegError: For a wrong argument, a data set that cannot be read, or a split that is there already.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(list(args))
    root, layout, kwargs = find_source(given)
    shares = _check_shares(given.val_share, given.test_share)
    keep = tuple(given.keep)
    _check_kept(root, layout, keep, tuple(shares))
    if not given.force:
        check_free(root, layout, (*shares, *keep), keep=keep)
    data, rows = _open(root, layout, kwargs, keep, pixels=find_pixels(given))
    names, labels = [data.names[row] for row in rows], data.labels[rows]
    groups, how = group_images(given, data, rows.tolist())
    number = len(rows) if groups is None else int(groups.max()) + 1
    splits = choose_splits(
        labels, names, shares, groups=np.arange(len(rows)) if groups is None else groups, seed=given.seed
    )
    paths = write_splits(root, layout, names, splits)
    print(_describe(data, labels, splits, tuple(shares)))
    print(f"{len(rows)} images in {number} groups" + (f" ({how})" if how else ""))
    print("written:", *paths, sep="\n  ")
    return 0


def create_parser() -> ArgumentParser:
    """The parser of the command's arguments."""
    result = ArgumentParser("tw-seg data split", description=_DESCRIPTION)
    add_data_arguments(result)
    add_near_duplicates(result)
    add = result.add_argument
    add("--val_share", type=float, default=0.2, metavar="SHARE", help="share of the images that become val")
    add("--test_share", type=float, default=0.0, metavar="SHARE", help="share that becomes test; 0 for none")
    add("--keep", nargs="*", default=[], metavar="SPLIT", help="splits whose images stay where they are, as test")
    add("--seed", type=int, default=0, metavar="N", help="another seed is another split")
    add("--force", action="store_true", help="replace the splits that are there")
    return result


def _check_shares(val: float, test: float) -> dict[str, float]:
    for name, share in (("val_share", val), ("test_share", test)):
        if not is_number(share) or not 0 <= share < 1:
            raise InputError(f"--{name} must be a share from 0 to below 1, got {share!r}")
    if val + test >= 1 or val + test == 0:
        raise InputError(f"--val_share and --test_share must add up to more than 0 and less than 1, got {val + test}")
    return {name: share for name, share in (("train", 1 - val - test), ("val", val), ("test", test)) if share}


def _check_kept(root: Path, layout: str, keep: Sequence[str], splits: Sequence[str]) -> None:
    """Refuse kept splits that there are not or that would be written, and others that would hold the same images."""
    taken = list_taken(root, layout)
    unknown, both = sorted(set(keep) - set(taken)), sorted(set(keep) & set(splits))
    if unknown or both:
        wrong = f"there is no {', '.join(unknown)}" if unknown else f"{', '.join(both)} would be written"
        raise InputError(f"--keep names splits that stay as they are, but {wrong}; there are {', '.join(taken)}")
    left = sorted({"train", "val", "test"} & set(taken) - set(keep) - set(splits))
    if left and layout != "folder":
        raise InputError(
            f"{find_list_folder(root, layout)}: the split {left[0]} would share images with the new ones; keep it with "
            f"--keep {left[0]}, give it a share, or remove its list"
        )


def _open(
    root: Path, layout: str, kwargs: Mapping[str, Any], keep: Sequence[str], *, pixels: PixelFormat
) -> tuple[SegmentationData, np.ndarray]:
    """All images, and those that are to be divided: of a data set with lists, those of the lists."""
    errors: list[DataError] = []
    data = open_split(root, layout, None, kwargs, pixels=pixels, on_error=errors.append)
    taken = list_taken(root, layout)
    listed = layout != "folder" and taken
    if errors and not listed:
        more = f" ({len(errors)} errors; tw-seg data check lists them)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}")
    kept = {name for split in keep for name in open_split(root, layout, split, kwargs).names}
    if listed:
        inside = {name for found in open_splits(root, layout, kwargs).values() for name in found.names}
    else:
        inside = set(data.names)
    rows = np.array([row for row, name in enumerate(data.names) if name in inside - kept], dtype=np.int64)
    if not len(rows):
        raise InputError(f"{root}: all images are in the splits that stay ({', '.join(keep)}); keep fewer")
    return data, rows


def _describe(data: SegmentationData, labels: np.ndarray, splits: np.ndarray, order: Sequence[str]) -> str:
    """A line for each class, with its images in each split."""
    counts = Counter(splits.tolist())
    lines = [["", *order], ["images", *(str(counts[split]) for split in order)]]
    for k, name in enumerate(data.classes):
        if k != BACKGROUND:
            lines.append([name, *(str(int((labels[splits == split, k] > 0).sum())) for split in order)])
    return format_table(lines)
