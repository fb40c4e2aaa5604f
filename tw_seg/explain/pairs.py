"""What is explained: pairs of an image and a class that is predicted in it, each with its predicted mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tw_seg.arguments import class_indices
from tw_seg.explain.model import predict_class
from tw_seg.types import BACKGROUND


class Pairs(NamedTuple):
    """P pairs of an image and a class.

    Attributes:
        samples: The row of each pair's image, int64 (P,). P may be 0.
        classes: Its class, int64 (P,).
        predictions: Where the class is predicted, bool (P, H, W), a pixel or more in each.
    """

    samples: Tensor
    classes: Tensor
    predictions: Tensor


def find_pairs(mask_logits: Tensor, classes: Sequence[int] | Tensor | None = None) -> Pairs:
    """The classes that are predicted in each image, with their masks.

    Args:
        mask_logits: Shape (N, K, H, W).
        classes: Classes to look for; ``None``: all but the background, or the only one.

    Returns:
        The pairs, image by image. A class that is predicted nowhere in an image makes no pair with it.

    Raises:
        InputError: For anything but integers, or an index outside ``0..K-1``.

    Examples:
        >>> find_pairs(torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]], [[0.0, 0.0]]]]))
        Pairs(samples=tensor([0]), classes=tensor([1]), predictions=tensor([[[False,  True]]]))
    """
    count = mask_logits.shape[1]
    if classes is None:
        classes = range(count) if count == 1 else range(BACKGROUND + 1, count)
    wanted = torch.as_tensor(class_indices(classes, count), dtype=torch.int64, device=mask_logits.device)
    samples = torch.arange(len(mask_logits), device=wanted.device).repeat_interleave(len(wanted))
    chosen = wanted.repeat(len(mask_logits))
    if count == 1:
        predictions = predict_class(mask_logits[samples], chosen)
    else:  # the same, without a copy of all logits for each class
        predictions = mask_logits.argmax(1)[samples] == chosen[:, None, None]
    shown = predictions.flatten(1).any(1)
    return Pairs(samples[shown], chosen[shown], predictions[shown])


def dice(first: Tensor, second: Tensor) -> Tensor:
    """Dice of masks, or of probabilities and masks: ``2 sum(a b) / (sum a + sum b)``; 1 where both are empty.

    Args:
        first: Bool or in [0, 1], shape (P, H, W).
        second: The same.

    Returns:
        Shape (P,), float32, or float64 if one of them is.

    Examples:
        >>> dice(torch.tensor([[[True, True]]]), torch.tensor([[[True, False]]]))
        tensor([0.6667])
    """
    kind = torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32
    first, second = first.to(kind), second.to(kind)
    overlap, total = (first * second).sum((1, 2)), (first + second).sum((1, 2))
    return torch.where(total > 0, 2 * overlap / total.clamp_min(torch.finfo(kind).tiny), 1.0)
