"""A data set on disk, of which the splits are opened that there are, whatever its layout is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tw_seg.arguments import fill_in_options
from tw_seg.data import DATASETS
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.layouts.pixels import RGB, PixelFormat, set_pixels
from tw_seg.data.layouts.splits import SPLIT_BY
from tw_seg.data.layouts.usable import OnError, raise_error
from tw_seg.errors import DataError, InputError

ALL = "all"
"""What the images are called of a data set that is not divided."""

ORDER = ("train", "val", "test")
"""The splits that are named first."""

_MARKS = {
    "cvat_masks": "ImageSets/Segmentation/default.txt",
    "voc": "JPEGImages",
    "folder": "image_labels.csv",
    "cvat": "annotations.xml",
    "label_studio": "annotations.json",
    "coco": "annotations",
}
"""Layouts by the file or folder that only they have; labelme has none."""


def find_layout(root: Path) -> str:
    """The layout of a folder, by what is in it.

    Raises:
        DataError: If there is no such folder, or it has no layout that can be told.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; check the path")
    for layout, mark in _MARKS.items():
        if (root / mark).exists():
            return layout
    marks = ", ".join(f"{mark} ({layout})" for layout, mark in _MARKS.items())
    raise DataError(f"{root}: expected one of {marks} in it; add it, or say which layout it is with --layout")


def open_splits(
    root: Path,
    layout: str,
    dataset_kwargs: Mapping[str, Any] | None = None,
    *,
    pixels: PixelFormat = RGB,
    on_error: OnError = raise_error,
) -> dict[str, SegmentationData]:
    """Open every split of a data set.

    Args:
        root: Where it is.
        layout: A name in `tw_seg.data.DATASETS`.
        dataset_kwargs: Its further arguments.
        pixels: How its images are read.
        on_error: Is called with each error of a single image, which is left out, and of a split that cannot be opened.

    Returns:
        The data sets by the names of the splits, those of `ORDER` first; by `ALL` if it is not divided.

    Raises:
        InputError: For another layout, or arguments that it does not have.
        DataError: What ``on_error`` raises.
    """
    _bind(root, layout, None, dataset_kwargs, on_error)
    try:
        names = _list_splits(root, layout, dataset_kwargs or {})
    except DataError as error:
        on_error(error)
        return {}
    found = {}
    for name in sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        try:
            data = open_split(root, layout, name, dataset_kwargs, pixels=pixels, on_error=on_error)
        except DataError as error:
            on_error(error)
        else:
            found[ALL if name is None else name] = data
    return found


def open_split(
    root: Path,
    layout: str,
    split: str | None,
    dataset_kwargs: Mapping[str, Any] | None = None,
    *,
    pixels: PixelFormat = RGB,
    on_error: OnError = raise_error,
) -> SegmentationData:
    """Open one split of a data set, or with ``None`` all of it.

    Args:
        root: Where it is.
        layout: A name in `tw_seg.data.DATASETS`.
        split: The split.
        dataset_kwargs: Further arguments of the layout.
        pixels: How its images are read.
        on_error: As in `open_splits`.

    Raises:
        InputError: For another layout, or arguments that it does not have.
        DataError: If it cannot be opened.
    """
    kwargs = _bind(root, layout, split, dataset_kwargs, on_error)
    data: SegmentationData = set_pixels(DATASETS[layout](**kwargs), pixels, layout)
    return data


def _bind(
    root: Path, layout: str, split: str | None, dataset_kwargs: Mapping[str, Any] | None, on_error: OnError
) -> dict[str, Any]:
    """All arguments of a layout, if it has them."""
    if layout not in DATASETS:
        raise InputError(f"layout: expected one of {', '.join(DATASETS)}, got {layout!r}")
    signature = inspect.signature(DATASETS[layout])
    kwargs = {"root": root, "split": split, **(dataset_kwargs or {})}
    if "on_error" in signature.parameters:
        kwargs["on_error"] = on_error
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise InputError(f"dataset_kwargs for {layout!r}: {error}; got {sorted(dataset_kwargs or {})}") from error
    return kwargs


def _list_splits(root: Path, layout: str, dataset_kwargs: Mapping[str, Any]) -> tuple[str | None, ...]:
    split_by = fill_in_options("split_by", dataset_kwargs.get("split_by") or {}, SPLIT_BY)
    if split_by["shares"]:
        return tuple(split_by["shares"])
    if split_by["files"]:
        before, _, after = str(split_by["files"]).partition("{split}")
        paths = sorted(str(path.relative_to(root)) for path in root.glob(f"{before}*{after}"))
        return tuple(path.removeprefix(before).removesuffix(after) for path in paths) or (None,)
    list_splits = getattr(DATASETS[layout], "list_splits", None)
    return (None,) if list_splits is None else list_splits(root)
