"""Masks in which only some classes were annotated: what their pixels say, and what they leave open."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.regions import find_open_classes
from tw_seg.resize import resize_logits
from tw_seg.types import BACKGROUND

ABSENT_LOGIT = -1e4
"""Logit of a class that no pixel of an image can have: its probability is 0, in every float type."""

Unmasked = Literal["compete", "fixed", "leave_out"]
"""What classes that were not annotated do in the loss of a mask, see `merge_open_classes`."""


def check_unmasked(unmasked: str) -> None:
    """Check that it is one of `Unmasked`.

    Raises:
        InputError: It is not.
    """
    if unmasked not in get_args(Unmasked):
        raise InputError(f"unmasked must be one of {', '.join(get_args(Unmasked))}, got {unmasked!r}")


def merge_open_classes(
    mask_logits: Tensor,
    annotated: Tensor,
    labels: Tensor,
    *,
    size: tuple[int, int],
    unmasked: Unmasked = "compete",
) -> Tensor:
    """Let the background stand for whatever a mask leaves open, so that any loss of logits and masks holds.

    In a mask that shows some classes only, a background pixel may belong to the background or to a class that was
    not annotated and that the image-level labels name or do not know. Its loss is that of the set: minus the logarithm
    of their summed probability. A class that the labels exclude is wrong at every pixel, annotated or not: without that
    nothing keeps a class low that never had a mask, and it covers the background of images without it.

    The logits that are returned give exactly that to `tw_seg.losses.cross_entropy` and
    `tw_seg.losses.dice`: the background's is the logarithm of the summed exponentials of the set, those of its
    other members are so low that their probability is 0.

    Args:
        mask_logits: Logits, shape (L, K, h, w).
        annotated: Which classes were annotated in each mask, bool, shape (L, K).
        labels: Image-level labels of the L images, shape (L, K); above 0 means present, NaN that nobody knows.
        size: (H, W) of the masks, to which the logits are resized first.
        unmasked: What the classes do that were not annotated. ``"compete"``: they are trained as the others, so that
            every pixel speaks against those that the labels exclude. ``"fixed"``: their logits are constants that the
            others compete with. ``"leave_out"``: the same, and those that the labels exclude do not even compete.

    Returns:
        Logits, shape (L, K, H, W).

    Raises:
        InputError: The shapes do not fit, or ``unmasked`` is none of these.

    Examples:
        >>> logits = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        >>> seen, labels = torch.tensor([[True, True, False]]), torch.ones(1, 3)
        >>> probabilities = merge_open_classes(logits, seen, labels, size=(1, 1)).softmax(1).flatten()
        >>> plain = logits.softmax(1).flatten()
        >>> torch.testing.assert_close(probabilities, torch.stack([plain[0] + plain[2], plain[1], plain.new_zeros(())]))
    """
    if annotated.shape != mask_logits.shape[:2] or labels.shape != annotated.shape:
        raise InputError(
            f"annotated and labels must both have the shape (L, K) = {tuple(mask_logits.shape[:2])}, got "
            f"{tuple(annotated.shape)} and {tuple(labels.shape)}: pass the rows of the masks alone"
        )
    check_unmasked(unmasked)
    logits = resize_logits(mask_logits, size)
    if unmasked != "compete":
        shown = annotated.clone()
        shown[:, BACKGROUND] = True
        logits = torch.where(shown[..., None, None], logits, logits.detach())
    is_open = find_open_classes(annotated, labels)
    is_open[:, BACKGROUND] = True
    group = torch.where(is_open[..., None, None], logits, ABSENT_LOGIT).logsumexp(1, keepdim=True)
    gone = is_open | ~annotated if unmasked == "leave_out" else is_open
    single = torch.where(gone[..., None, None], ABSENT_LOGIT, logits)
    return torch.cat([group, single[:, BACKGROUND + 1 :]], dim=1)
