"""The threshold of a training-free model: the background's score that gives the best masks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tw_seg.arguments import check_mask_ids
from tw_seg.errors import InputError
from tw_seg.metrics import mean_iou
from tw_seg.types import BACKGROUND, IGNORE_INDEX

THRESHOLDS = torch.linspace(0, 0.99, 100).square()
"""Candidates, ascending; finer near 0, where input x gradient needs it."""


def choose_threshold(scored: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> tuple[float, float]:
    """Choose the background's score on the grid of `THRESHOLDS` that gives the best mean IoU.

    Args:
        scored: Pairs of scores (S, K, H, W), whose background is not looked at, and masks, int64 (S, H, W).
        num_classes: K, the background included.

    Returns:
        The threshold, and the mean IoU with it over the classes that occur.

    Raises:
        InputError: No pixel is labelled, or a mask holds an unknown class.

    Examples:
        >>> scores = torch.tensor([[[[0.0, 0.0]], [[0.2, 0.9]]]])  # of the object, left and right
        >>> threshold, miou = choose_threshold([(scores, torch.tensor([[[0, 1]]]))], 2)
        >>> 0.2 <= threshold < 0.9, miou
        (True, 1.0)
    """
    counts = torch.zeros((num_classes, num_classes, len(THRESHOLDS) + 1), dtype=torch.int64)
    for scores, masks in scored:
        counts += count_exceeded(scores.cpu(), masks.cpu())
    if not counts.any():
        raise InputError("calibrate needs at least one labelled pixel; give it labelled training batches.")
    ious = mean_iou(_make_confusions(counts).double())
    best = int(ious.argmax())
    return float(THRESHOLDS[best]), float(ious[best])


def count_exceeded(scores: Tensor, masks: Tensor) -> Tensor:
    """Count pixels by true class, best object class and number of thresholds that its score exceeds.

    One count serves the whole grid: a pixel shows its best object class below its score, and the background above.

    Args:
        scores: Shape (S, K, H, W).
        masks: Int64 (S, H, W), 255 to ignore.

    Returns:
        Int64 (K, K, T + 1).
    """
    k, bins = scores.shape[1], len(THRESHOLDS) + 1
    check_mask_ids(masks, k)
    objects = scores.clone()
    objects[:, BACKGROUND] = -1
    best, winner = objects.max(dim=1)
    labelled = masks != IGNORE_INDEX
    exceeded = torch.bucketize(best[labelled].to(THRESHOLDS.dtype), THRESHOLDS)
    index = (masks[labelled] * k + winner[labelled]) * bins + exceeded
    return torch.bincount(index, minlength=k * k * bins).view(k, k, bins)


def _make_confusions(counts: Tensor) -> Tensor:
    """Confusion matrices by threshold, (T, K, K), from the counts of `count_exceeded`."""
    # At threshold j a pixel is an object's if it exceeds more than j thresholds.
    above = counts.flip(2).cumsum(2).flip(2)[:, :, 1:]
    confusions = above.clone()
    confusions[:, BACKGROUND] += counts.sum(dim=(1, 2))[:, None] - above.sum(dim=1)
    return confusions.permute(2, 0, 1)
