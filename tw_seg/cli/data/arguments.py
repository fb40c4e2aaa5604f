"""Arguments that the commands of ``tw-seg data`` share: which data set, and what keeps images together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from tw_seg.data.check.scan import hash_images
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.grouping.group_column import group_by_column
from tw_seg.data.grouping.join import join_groups
from tw_seg.data.grouping.near_duplicates import group_near_duplicates
from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.data.opening import find_layout

NEAR_DUPLICATES = "near-duplicates"

_Item = TypeVar("_Item")


def add_source_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say where a data set is."""
    add, mapping = parser.add_argument, dict[str, Any] | None
    add("path", help="the folder of the data set")
    add("--layout", metavar="NAME", help="folder, voc, ...; without it, what the folder looks like")
    add("--dataset_kwargs", type=mapping, metavar="YAML", help="further arguments of the layout, as in a config")
    add("--channels", type=int, default=3, metavar="N", help="channels of the images, as data.channels in a config")
    add(
        "--value_range",
        type=tuple[float, float] | None,
        metavar="[LOW, HIGH]",
        help="of images of 16 bits or floats: the values that become 0 and 1, as data.value_range in a config",
    )


def add_data_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say where a data set is, and how its images are grouped."""
    add_source_arguments(parser)
    add = parser.add_argument
    add("--group_column", metavar="NAME", help="column of a table by which images belong together, as patient")
    add("--table", metavar="FILE", help="the table of --group_column; by default image_labels.csv in the folder")


def add_near_duplicates(parser: ArgumentParser) -> None:
    """Add the argument that leaves near-duplicates out of account."""
    parser.add_argument(
        "--near_duplicates",
        type=bool,
        default=True,
        metavar="BOOL",
        help="near-duplicates belong together, too; false reads no image",
    )


def find_source(given: Namespace) -> tuple[Path, str, dict[str, Any]]:
    """The folder, the layout and its further arguments.

    Raises:
        DataError: If the folder has no layout that can be told.
    """
    root = Path(given.path)
    return root, given.layout or find_layout(root), given.dataset_kwargs or {}


def find_pixels(given: Namespace) -> PixelFormat:
    """How the images of the data set are read.

    Raises:
        InputError: The arguments do not fit.
    """
    return PixelFormat(given.channels, given.value_range)


def group_images(given: Namespace, data: SegmentationData, rows: Sequence[int]) -> tuple[np.ndarray | None, str]:
    """Groups of some images of a data set, as the arguments say, and how they were made.

    Returns:
        The number of each image's group, shape (rows,), or ``None`` without any grouping; and its name.

    Raises:
        DataError: If an image or the table cannot be read.
    """
    groups, how = None, []
    if given.near_duplicates:
        groups = group_near_duplicates(hash_images(data, rows, show_progress))
        how.append(NEAR_DUPLICATES)
    if given.group_column is not None:
        table = Path(given.table) if given.table else Path(given.path) / "image_labels.csv"
        column = group_by_column(table, given.group_column, [data.names[row] for row in rows])
        groups = column if groups is None else join_groups(groups, column)
        how.append(f"column {given.group_column}")
    return groups, " and ".join(how)


def show_progress(items: Iterator[_Item], total: int) -> Iterable[_Item]:
    """Pass images on with a progress bar, on a terminal."""
    bar: Iterable[_Item] = tqdm(items, total=total, unit="image", disable=None)
    return bar
