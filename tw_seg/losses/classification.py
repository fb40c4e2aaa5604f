"""The image-level loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.losses.masked import mean_of
from tw_seg.processes import AddUp, keep_sum
from tw_seg.types import BACKGROUND


def multilabel_bce(logits: Tensor, labels: Tensor, *, add_up: AddUp = keep_sum) -> Tensor:
    """Binary cross-entropy per image and class; the background column (index 0) has weight 0.

    Background is in every image: its label says nothing, and its logit is free to serve the mask. Unknown labels do not
    count either.

    Args:
        logits: Image-level class scores, shape (N, K).
        labels: Multi-hot labels in [0, 1], float, shape (N, K); NaN where nobody knows.
        add_up: See `tw_seg.losses.masked.masked_mean`.

    Returns:
        A scalar in nats, the mean over the known labels of N images and K - 1 classes; 0 with zero gradient if there is
        none.

    Raises:
        InputError: The shapes differ or there is no class besides the background.

    Examples:
        >>> multilabel_bce(torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
        tensor(0.6931)
    """
    if logits.ndim != 2 or logits.shape != labels.shape or logits.numel() == 0 or logits.shape[1] < 2:
        raise InputError(
            "logits and labels must both have the shape (N, K), K >= 2 with the background, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}: check that model and data set know the same "
            "classes."
        )
    if not labels.is_floating_point():
        raise InputError(f"labels must be a float tensor, got {labels.dtype}: convert with labels.float().")
    logits = logits.float() if logits.dtype != labels.dtype else logits
    first = BACKGROUND + 1
    logits, labels = logits[:, first:], labels[:, first:]
    known = ~labels.isnan()
    # Both are replaced before, not the result after: a gradient of 0 times infinity would be NaN.
    values = F.binary_cross_entropy_with_logits(
        torch.where(known, logits, 0.0), torch.where(known, labels, 0.0), reduction="none"
    )
    return mean_of(torch.where(known, values, 0.0), known, add_up=add_up)
