"""Pixels of which only a set of classes is known: values ``K + r`` of a mask, for row ``r`` of its regions.

See :class:`tw_seg.types.Sample`. Losses know what such a pixel may be (:mod:`tw_seg.losses.sets`); for all else it is
ignored.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tw_seg.errors import DataError
from tw_seg.types import IGNORE_INDEX


def check_regions(mask: np.ndarray, regions: np.ndarray | None, num_classes: int, *, name: str) -> None:
    """Check that the regions of a mask are sets of classes, and that it has no value without one.

    Args:
        mask: Uint8, shape (H, W).
        regions: Bool, shape (R, K), or ``None``.
        num_classes: K.
        name: What messages call the mask.

    Raises:
        DataError: Says what is wrong.

    Example:
        >>> check_regions(np.array([[0, 3, 255]], dtype=np.uint8), np.array([[True, False, True]]), 3, name="a.png")
    """
    if regions is None:
        return
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
        raise DataError(
            f"{name}: the mask has the value {wrong[0]}, but only {num_classes} classes and {len(regions)} regions: "
            "correct the data set"
        )


def ignore_regions(masks: Tensor, num_classes: int) -> Tensor:
    """Masks of any shape in which pixels of regions are 255.

    Example:
        >>> import torch
        >>> ignore_regions(torch.tensor([0, 1, 2, 255]), 2)
        tensor([  0,   1, 255, 255])
    """
    return masks.masked_fill(masks >= num_classes, IGNORE_INDEX)
