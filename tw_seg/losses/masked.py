"""Means and sums over labelled pixels: the one place that divides by their number."""

from __future__ import annotations

import torch
from torch import Tensor

from tw_seg.arguments import check_mask_ids
from tw_seg.errors import InputError
from tw_seg.processes import AddUp, keep_sum
from tw_seg.types import IGNORE_INDEX


def masked_mean(values: Tensor, masks: Tensor, *, add_up: AddUp = keep_sum) -> Tensor:
    """Mean of ``values`` over the labelled pixels of a whole batch.

    Args:
        values: One number per pixel, float, shape (L, H, W).
        masks: Masks, int64, shape (L, H, W); pixels of value 255 do not count.
        add_up: What makes sums over this batch of sums over the part of it that is here; as for all losses.

    Returns:
        A scalar; 0 with zero gradient if no pixel is labelled (L may be 0).

    Raises:
        InputError: The shapes differ.

    Examples:
        >>> masked_mean(torch.tensor([[[1.0, 3.0, 50.0]]]), torch.tensor([[[0, 2, 255]]]))
        tensor(2.)
    """
    if values.shape != masks.shape:
        raise InputError(
            f"values and masks must have the same shape (L, H, W), got {tuple(values.shape)} and "
            f"{tuple(masks.shape)}: resize values to the masks first"
        )
    labelled = masks != IGNORE_INDEX
    # where, not a product: an infinite value at an ignored pixel must not become NaN.
    return mean_of(torch.where(labelled, values, 0.0), labelled, add_up=add_up)


def mean_of(values: Tensor, counted: Tensor, *, add_up: AddUp = keep_sum) -> Tensor:
    """Sum of ``values``, any shape, divided by the number of those that count (bool or 0/1); 0 if none does."""
    return add_up(values.sum()) / add_up(counted.sum()).clamp(min=1)


def masked_sums(values: Tensor, masks: Tensor, *, add_up: AddUp = keep_sum) -> Tensor:
    """Sum of ``values`` (L, K, H, W) over the labelled pixels of a whole batch, per class: shape (K,)."""
    labelled = (masks != IGNORE_INDEX).unsqueeze(1)
    return add_up(torch.where(labelled, values, 0.0).sum(dim=(0, 2, 3)))


def mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Mean of ``values`` (P, H, W) over the pixels ``inside`` of each of P regions, bool (P, H, W); 0 of none: (P,)."""
    return torch.where(inside, values, 0.0).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)


def check_masks(mask_logits: Tensor, masks: Tensor, regions: Tensor | None = None) -> None:
    """Check that ``masks`` (L, H, W), with ``regions`` (L, R, K), can be the target of ``mask_logits`` (L, K, h, w).

    The class ids are read on the CPU only. On a GPU that would make every step wait for the device; there we
    rely on the data pipeline, which checks every mask it loads.

    Raises:
        InputError: Naming what was expected, what was found and the remedy.
    """
    if mask_logits.ndim != 4 or not mask_logits.is_floating_point():
        raise InputError(
            f"mask_logits must be a float tensor (L, K, H, W), got {mask_logits.dtype} "
            f"{tuple(mask_logits.shape)}: pass SegOutput.mask_logits."
        )
    if masks.ndim != 3 or masks.dtype != torch.int64:
        raise InputError(
            f"masks must be an int64 tensor (L, H, W), got {masks.dtype} {tuple(masks.shape)}: class "
            "indices, not one-hot or float; convert with masks.long()."
        )
    if len(mask_logits) != len(masks):
        raise InputError(
            f"row i of mask_logits must belong to masks[i], got {len(mask_logits)} rows for {len(masks)} "
            "masks: decode the labelled samples only, model(images, samples=batch.labelled)."
        )
    if masks.is_cpu and masks.numel() and not torch.compiler.is_compiling():
        check_mask_ids(masks, mask_logits.shape[1] + (0 if regions is None else regions.shape[1]))
