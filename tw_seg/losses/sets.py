"""Which classes each pixel of a mask may have: one, those of a set, or any where it is ignored."""

from __future__ import annotations

import torch
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.types import IGNORE_INDEX


def find_allowed(masks: Tensor, num_classes: int, regions: Tensor | None = None) -> Tensor:
    """The classes that each pixel may have.

    Args:
        masks: Masks, int64, shape (L, H, W): a class id, ``K + r`` for the set in row r of the regions, or 255 for any
            class.
        num_classes: K.
        regions: Sets of classes, bool, shape (L, R, K), see `tw_seg.types.Batch`; ``None``: no pixel has one.

    Returns:
        Bool, shape (L, K, H, W).

    Raises:
        InputError: The regions do not fit the masks, or a pixel has an empty set (seen on the CPU only).

    Examples:
        >>> regions = torch.tensor([[[True, False, True]]])
        >>> find_allowed(torch.tensor([[[1, 3, 255]]]), 3, regions)[0, :, 0].T.int()
        tensor([[0, 1, 0],
                [1, 0, 1],
                [1, 1, 1]], dtype=torch.int32)
    """
    single = torch.eye(num_classes, dtype=torch.bool, device=masks.device).expand(len(masks), -1, -1)
    rows = [single, torch.ones_like(single[:, :1])]
    if regions is not None:
        if regions.dtype != torch.bool or regions.ndim != 3 or regions.shape[::2] != (len(masks), num_classes):
            raise InputError(
                f"regions must be bool of shape (L, R, K) = ({len(masks)}, R, {num_classes}), got {regions.dtype} "
                f"{tuple(regions.shape)}: pass Batch.regions"
            )
        rows.insert(1, regions)
    table = torch.cat(rows, dim=1)
    values = masks.masked_fill(masks == IGNORE_INDEX, table.shape[1] - 1)
    image = torch.arange(len(masks), device=masks.device)[:, None, None]
    allowed = table[image, values].movedim(-1, 1)
    if regions is not None and masks.is_cpu and not torch.compiler.is_compiling() and not allowed.any(1).all():
        raise InputError("a pixel has a value whose row of regions has no class: name all classes that it may have")
    return allowed


def ignore_open_pixels(masks: Tensor, allowed: Tensor) -> Tensor:
    """Masks in which a pixel that may have any class is 255, whatever its value: nothing is known of it."""
    return masks.masked_fill(allowed.all(dim=1), IGNORE_INDEX)
