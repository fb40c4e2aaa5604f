"""Seeds: the coefficient rows at the logits with which a decode begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.errors import InputError


def class_indices(classes: Sequence[int] | Tensor | None, num_classes: int) -> tuple[int, ...] | Tensor:
    """Validate a choice of classes; ``None`` means all of them, in order.

    Raises:
        InputError: For an index outside ``0..num_classes-1``.
    """
    if classes is None:
        return tuple(range(num_classes))
    if isinstance(classes, Tensor):
        if classes.is_floating_point() or classes.dtype == torch.bool or classes.ndim != 1:
            raise InputError(
                f"classes must be a 1-D integer tensor, got {classes.dtype} of shape {tuple(classes.shape)}"
            )
        if classes.device.type != "cpu" or torch.compiler.is_compiling():
            return classes  # looking at the values would wait for the device
    chosen = tuple(int(k) for k in classes)
    wrong = [k for k in chosen if not 0 <= k < num_classes]
    if wrong:
        raise InputError(f"classes {wrong} are outside 0..{num_classes - 1}, the classes of this classifier")
    return chosen


def logit_seed(logits: Tensor, classes: tuple[int, ...] | Tensor) -> Tensor:
    """One-hot rows (S, K', K): the relevance of class k starts as the logit ``z_k`` itself."""
    index = torch.as_tensor(classes, device=logits.device)
    rows = F.one_hot(index.long(), logits.shape[1]).to(logits.dtype)
    return rows.expand(logits.shape[0], *rows.shape)
