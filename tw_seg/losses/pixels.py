"""Segmentation losses on mask logits, over labelled pixels only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.losses.masked import check_masks, masked_mean, masked_sums
from tw_seg.losses.sets import find_allowed, ignore_open_pixels
from tw_seg.processes import AddUp, keep_sum
from tw_seg.resize import resize_logits
from tw_seg.types import IGNORE_INDEX


def cross_entropy(
    mask_logits: Tensor, masks: Tensor, regions: Tensor | None = None, *, add_up: AddUp = keep_sum
) -> Tensor:
    """Pixel-wise cross-entropy, the mean over all labelled pixels of the batch (each pixel counts the same).

    Equals ``torch.nn.functional.cross_entropy(..., ignore_index=255)``, but where that is NaN, on a batch
    without labelled pixels, it is 0 with zero gradient. A pixel that may have one of several classes has minus the
    logarithm of their summed probability; one that may have any class is not labelled.

    Args:
        mask_logits: Logits, shape (L, K, h, w); resized bilinearly to the masks if they differ in size.
        masks: Class ids, int64, shape (L, H, W), 255 = ignored.
        regions: Sets of classes of the values from K on, bool, shape (L, R, K), see `tw_seg.types.Batch`.
        add_up: See `tw_seg.losses.masked.masked_mean`.

    Returns:
        A scalar in nats.

    Raises:
        InputError: Shapes, types or class ids do not fit.

    Examples:
        >>> logits = torch.tensor([[[[0.0, 9.0]], [[0.0, -9.0]]]])  # (1, 2, 1, 2)
        >>> cross_entropy(logits, torch.tensor([[[1, 255]]]))
        tensor(0.6931)
    """
    check_masks(mask_logits, masks, regions)
    logits = resize_logits(mask_logits, masks.shape[-2:])
    if regions is not None:
        allowed = find_allowed(masks, logits.shape[1], regions)
        sets = torch.where(allowed, logits.log_softmax(dim=1), -torch.inf).logsumexp(dim=1)
        return masked_mean(-sets, ignore_open_pixels(masks, allowed), add_up=add_up)
    values = F.cross_entropy(logits, masks, ignore_index=IGNORE_INDEX, reduction="none")
    return masked_mean(values, masks, add_up=add_up)


def dice(mask_logits: Tensor, masks: Tensor, regions: Tensor | None = None, *, add_up: AddUp = keep_sum) -> Tensor:
    """Soft Dice loss: 1 - Dice of the softmax, the mean over the classes present in the batch's masks.

    For class k with probabilities p and target t, summed over all pixels of the batch of which it is known whether they
    are of class k: ``1 - 2 sum(p t) / (sum(p) + sum(t))`` (Milletari et al. 2016, without their squares). A class
    without a single pixel that is certainly of it has no Dice and does not count, so no smoothing constant is needed.

    Of a labelled pixel that is known for every class. Of one with a set of classes it is known for the classes outside
    (t = 0) and unknown for those inside, so it is left out of the sums of these. To count it for one of them, or in
    shares, would be a guess, which Dice turns into a size that the class should have.

    Args:
        mask_logits: Logits, shape (L, K, h, w); resized bilinearly to the masks if they differ in size.
        masks: Class ids, int64, shape (L, H, W), 255 = ignored.
        regions: Sets of classes of the values from K on, bool, shape (L, R, K), see `tw_seg.types.Batch`.
        add_up: See `tw_seg.losses.masked.masked_mean`.

    Returns:
        A scalar in [0, 1]; 0 with zero gradient if no pixel is labelled.

    Raises:
        InputError: Shapes, types or class ids do not fit.

    Examples:
        >>> logits = torch.tensor([[[[50.0, -50.0]], [[-50.0, 50.0]]]])  # class 0, then class 1
        >>> dice(logits, torch.tensor([[[0, 1]]]))
        tensor(0.)
    """
    check_masks(mask_logits, masks, regions)
    probabilities = resize_logits(mask_logits, masks.shape[-2:]).softmax(dim=1)
    certain, known = _split_known(probabilities, masks, regions)
    sizes = add_up(certain.sum(dim=(0, 2, 3)))
    present = sizes > 0
    overlap = 2 * add_up(torch.where(certain, probabilities, 0.0).sum(dim=(0, 2, 3)))
    total = masked_sums(known, masks, add_up=add_up) + sizes
    scores = overlap / torch.where(present, total, 1.0)
    return torch.where(present, 1 - scores, 0.0).sum() / present.sum().clamp(min=1)


def _split_known(probabilities: Tensor, masks: Tensor, regions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which pixels are certainly of which class, bool, and the probabilities where it is known, 0 elsewhere."""
    count = probabilities.shape[1]
    if regions is None:
        return masks.unsqueeze(1) == torch.arange(count, device=masks.device)[:, None, None], probabilities
    allowed = find_allowed(masks, count, regions)
    certain = allowed & (allowed.sum(dim=1, keepdim=True) == 1)
    return certain, torch.where(certain | ~allowed, probabilities, 0.0)
