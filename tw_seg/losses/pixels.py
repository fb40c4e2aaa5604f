"""Segmentation losses on mask logits, over labelled pixels only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.losses.masked import check_masks, masked_mean, masked_sums, one_hot
from tw_seg.resize import resize_logits
from tw_seg.types import IGNORE_INDEX


def cross_entropy(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Pixel-wise cross-entropy, the mean over all labelled pixels of the batch (each pixel counts the same).

    Equals ``torch.nn.functional.cross_entropy(..., ignore_index=255)``, but where that is NaN, on a batch
    without labelled pixels, it is 0 with zero gradient.

    Args:
        mask_logits: Logits, shape (L, K, h, w); resized bilinearly to the masks if they differ in size.
        masks: Class ids, int64, shape (L, H, W), 255 = ignored.

    Returns:
        A scalar in nats.

    Raises:
        InputError: Shapes, types or class ids do not fit.

    Example:
        >>> logits = torch.tensor([[[[0.0, 9.0]], [[0.0, -9.0]]]])  # (1, 2, 1, 2)
        >>> cross_entropy(logits, torch.tensor([[[1, 255]]]))
        tensor(0.6931)
    """
    check_masks(mask_logits, masks)
    logits = resize_logits(mask_logits, masks.shape[-2:])
    return masked_mean(F.cross_entropy(logits, masks, ignore_index=IGNORE_INDEX, reduction="none"), masks)


def dice(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Soft Dice loss: 1 - Dice of the softmax, the mean over the classes present in the batch's masks.

    For class k with probabilities p and target t, summed over all labelled pixels of the batch:
    ``1 - 2 sum(p t) / (sum(p) + sum(t))`` (Milletari et al. 2016, without their squares). A class without a
    single labelled pixel has no Dice and does not count, so no smoothing constant is needed.

    Args:
        mask_logits: Logits, shape (L, K, h, w); resized bilinearly to the masks if they differ in size.
        masks: Class ids, int64, shape (L, H, W), 255 = ignored.

    Returns:
        A scalar in [0, 1]; 0 with zero gradient if no pixel is labelled.

    Raises:
        InputError: Shapes, types or class ids do not fit.

    Example:
        >>> logits = torch.tensor([[[[50.0, -50.0]], [[-50.0, 50.0]]]])  # class 0, then class 1
        >>> dice(logits, torch.tensor([[[0, 1]]]))
        tensor(0.)
    """
    check_masks(mask_logits, masks)
    probabilities = resize_logits(mask_logits, masks.shape[-2:]).softmax(dim=1)
    target = one_hot(masks, probabilities)
    sizes = masked_sums(target, masks)
    present = sizes > 0
    overlap = 2 * masked_sums(probabilities * target, masks)
    total = masked_sums(probabilities, masks) + sizes
    scores = overlap / torch.where(present, total, 1.0)
    return torch.where(present, 1 - scores, 0.0).sum() / present.sum().clamp(min=1)
