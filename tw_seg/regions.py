"""Pixels of which only a set of classes is known.

They have the value ``K + r`` in a mask, for row ``r`` of its regions, see `tw_seg.types.Sample`, or are
background in a mask in which not all classes were annotated. Losses know what such a pixel may be
(`tw_seg.losses.sets`, `tw_seg.losses.annotated`); for all else it is ignored.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tw_seg.errors import DataError, MaskIdError
from tw_seg.types import BACKGROUND, IGNORE_INDEX


def check_regions(mask: np.ndarray, regions: np.ndarray | None, num_classes: int, *, name: str) -> None:
    """Check that the regions of a mask are sets of classes, and that it has no value that is neither class nor region.

    Args:
        mask: Uint8, shape (H, W).
        regions: Bool, shape (R, K), or ``None`` for none.
        num_classes: K.
        name: What messages call the mask.

    Raises:
        DataError: Says what is wrong.

    Examples:
        >>> check_regions(np.array([[0, 3, 255]], dtype=np.uint8), np.array([[True, False, True]]), 3, name="a.png")
    """
    if regions is None:
        regions = np.empty((0, num_classes), dtype=bool)
    if regions.dtype != bool or regions.ndim != 2 or regions.shape[1] != num_classes:
        raise DataError(
            f"{name}: regions must be bool of shape (R, {num_classes}), a set of classes in each row, got "
            f"{regions.dtype} {regions.shape}: correct the data set"
        )
    end = num_classes + len(regions)
    if end > IGNORE_INDEX:
        raise DataError(
            f"{name}: {num_classes} classes and {len(regions)} sets of classes are more than the {IGNORE_INDEX} values "
            "that a mask has: leave some annotations out, or cut the image into tiles"
        )
    if not regions.any(axis=1).all():
        row = int(regions.any(axis=1).argmin())
        raise DataError(f"{name}: row {row} of its regions has no class: a pixel belongs to one, so name all it may be")
    wrong = mask[(mask >= end) & (mask != IGNORE_INDEX)]
    if wrong.size:
        raise MaskIdError(
            f"{name}: the mask has the value {wrong[0]}, but there are {num_classes} classes and {len(regions)} "
            f"regions: give the data set's class list all its names, or map this id to {IGNORE_INDEX}"
        )


def find_open_classes(annotated: Tensor, labels: Tensor) -> Tensor:
    """Classes that a background pixel may have: those that were not annotated, unless the labels exclude them.

    Args:
        annotated: Which classes were annotated in a mask, bool, shape (..., K).
        labels: The image-level labels of its image, shape (..., K); NaN where nobody knows.

    Returns:
        Bool, shape (..., K).

    Examples:
        >>> import torch
        >>> find_open_classes(torch.tensor([True, True, False, False]), torch.tensor([1, 1, 0, torch.nan]))
        tensor([False, False, False,  True])
    """
    return ~annotated & ~(labels <= 0)  # not "> 0": NaN is open


def ignore_uncertain(mask: Tensor, labels: Tensor, annotated: Tensor | None = None) -> Tensor:
    """The mask of one image in which only pixels are left whose one class is known; the others are 255.

    Args:
        mask: Integers of any shape, see `tw_seg.types.Sample`.
        labels: The image-level labels of the image, shape (K,).
        annotated: Which classes were annotated in the mask, bool, shape (K,), background included; ``None``: all.

    Examples:
        >>> import torch
        >>> mask, labels = torch.tensor([0, 1, 3, 255]), torch.tensor([1.0, 1.0, 1.0])
        >>> ignore_uncertain(mask, labels)
        tensor([  0,   1, 255, 255])
        >>> ignore_uncertain(mask, labels, torch.tensor([True, True, False]))
        tensor([255,   1, 255, 255])
    """
    uncertain = mask >= len(labels)
    if annotated is not None and bool(find_open_classes(annotated, labels).any()):
        uncertain = uncertain | (mask == BACKGROUND)
    return mask.masked_fill(uncertain, IGNORE_INDEX)
