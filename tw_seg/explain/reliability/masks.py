"""Masks of mask logits, and how far two of them agree: the Dice that a score is to foretell."""

from __future__ import annotations

import torch
from torch import Tensor

from tw_seg.arguments import check_mask_ids
from tw_seg.types import BACKGROUND, IGNORE_INDEX


def predict_mask(mask_logits: Tensor) -> Tensor:
    """Class ids of mask logits; of one class alone, 1 where its logit is positive.

    Args:
        mask_logits: Shape (N, K, H, W).

    Returns:
        Int64, shape (N, H, W).

    Examples:
        >>> predict_mask(torch.tensor([[[[-1.0, 2.0]]]]))
        tensor([[[0, 1]]])
    """
    return (mask_logits[:, 0] > 0).long() if mask_logits.shape[1] == 1 else mask_logits.argmax(1)


def count_mask_classes(mask_logits: Tensor) -> int:
    """How many ids masks of these logits (N, K, H, W) may have, the background included: K, or 2 if K is 1."""
    return max(2, mask_logits.shape[1])


def mean_dice(first: Tensor, second: Tensor, num_classes: int) -> Tensor:
    """Dice of two masks, the mean over the object classes that either of them shows.

    So a class that is missed and one that is made up count as 0. Pixels that are ignored in either mask count nowhere.

    Args:
        first: Class ids and 255, int64, shape (N, H, W).
        second: The same.
        num_classes: K, the background included.

    Returns:
        Float64, shape (N,); 1 where neither shows an object, NaN where all pixels are ignored.

    Raises:
        InputError: A mask holds another id.

    Examples:
        >>> mean_dice(torch.tensor([[[1, 1, 2, 0]]]), torch.tensor([[[1, 0, 0, 0]]]), 3)  # 2/3 of class 1, 0 of class 2
        tensor([0.3333], dtype=torch.float64)
    """
    check_mask_ids(first, num_classes)
    check_mask_ids(second, num_classes)
    known = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    both = _count(first, known & (first == second), num_classes)
    total = _count(first, known, num_classes) + _count(second, known, num_classes)
    total[:, BACKGROUND] = 0
    shown = total > 0
    scores = torch.where(shown, 2 * both / total.clamp_min(1), 0).sum(1) / shown.sum(1).clamp_min(1)
    scores = torch.where(shown.any(1), scores, 1.0)
    return scores.masked_fill(~known.flatten(1).any(1), torch.nan)


def _count(masks: Tensor, chosen: Tensor, num_classes: int) -> Tensor:
    """Chosen pixels of each class, float64 (N, K)."""
    rows = torch.arange(len(masks), device=masks.device)[:, None, None]
    places = (rows * num_classes + masks)[chosen]
    return torch.bincount(places, minlength=len(masks) * num_classes).view(len(masks), num_classes).double()
