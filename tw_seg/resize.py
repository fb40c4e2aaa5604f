"""The one bilinear resize of maps and logits: of losses, metrics and models alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly; corners are not aligned, so a pixel is a square and not a point.

    Args:
        maps: Shape (N, K, h, w), float. N and K may be 0.
        size: Height and width of the result.

    Returns:
        Shape (N, K, H, W), of the same type; ``maps`` itself if it has that size.

    Examples:
        >>> resize_maps(torch.tensor([[[[0.0, 1.0]]]]), (1, 4))
        tensor([[[[0.0000, 0.2500, 0.7500, 1.0000]]]])
    """
    size = tuple(size)
    if tuple(maps.shape[-2:]) == size:
        return maps
    if maps.numel() == 0:
        return maps.new_zeros((*maps.shape[:2], *size)) + maps.sum()  # the sum keeps it part of the graph
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resize_logits(mask_logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resize mask logits as losses and metrics read them: at least in single precision.

    Args:
        mask_logits: Shape (N, K, h, w), any float type.
        size: Height and width of the result.

    Returns:
        Shape (N, K, H, W), float32, or float64 if ``mask_logits`` is.
    """
    return resize_maps(mask_logits if mask_logits.dtype == torch.float64 else mask_logits.float(), size)
