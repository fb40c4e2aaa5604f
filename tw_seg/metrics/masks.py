"""From mask logits to predicted masks at the size at which they are scored and written."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.resize import resize_logits


def predict_masks(mask_logits: Tensor, sizes: Sequence[Tensor | tuple[int, int]]) -> list[Tensor]:
    """Predict masks at their native sizes: the logits are resized bilinearly, then comes the argmax.

    Args:
        mask_logits: Logits, shape (L, K, H, W), any float type.
        sizes: The L native sizes (h, w), or masks that have those sizes.

    Returns:
        L masks of class indices, int64, each (h, w).

    Raises:
        InputError: The numbers differ.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[[[2.0, -2.0]], [[0.0, 0.0]]]])  # class 0 left, class 1 right
        >>> predict_masks(logits, [(1, 4)])
        [tensor([[0, 0, 1, 1]])]
    """
    if len(mask_logits) != len(sizes):
        raise InputError(f"expected one native size per row of mask_logits, got {len(sizes)} for {len(mask_logits)}")
    pairs = [tuple(size.shape[-2:]) if isinstance(size, Tensor) else tuple(size) for size in sizes]
    if len(set(pairs)) == 1:
        return list(resize_logits(mask_logits, pairs[0]).argmax(dim=1))
    return [resize_logits(row[None], size).argmax(dim=1)[0] for row, size in zip(mask_logits, pairs, strict=True)]
