"""Test-time augmentation: the average over mirrored and scaled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tw_seg.arguments import is_number
from tw_seg.errors import InputError
from tw_seg.predict.blend import lift_rejected
from tw_seg.resize import resize_logits, resize_maps
from tw_seg.types import SegOutput

Segment = Callable[[Tensor], SegOutput]
"""What segments images (N, C, H, W)."""


def check_scales(scales: Sequence[float]) -> None:
    """Raise an `InputError` for no scale, or one that is not positive."""
    if not scales or not all(is_number(scale) and 0 < scale < 100 for scale in scales):
        raise InputError(f"scales must be positive numbers below 100, such as 0.75 1 1.25, got {list(scales)!r}")


def average_over(segment: Segment, *, flip: bool = False, scales: Sequence[float] = (1.0,)) -> Segment:
    """A function that segments images several times and averages logits and mask logits.

    Args:
        segment: What is averaged.
        flip: Whether images are also mirrored left and right.
        scales: Sizes of the images that are segmented, relative to their own.

    Returns:
        Images (N, C, H, W) to logits (N, K) and mask logits (N, K, H, W), without ``aux``; ``segment`` itself where
        there is nothing to average.

    Raises:
        InputError: For no scale, or one that is not positive.
    """
    check_scales(scales)
    if not flip and list(scales) == [1]:
        return segment

    def run(images: Tensor) -> SegOutput:
        size = images.shape[2:]
        logits, maps = [], []
        for scale in scales:
            scaled = resize_maps(images, [max(1, round(side * scale)) for side in size])
            for mirrored in (False, True)[: 1 + flip]:
                output = segment(scaled.flip(-1) if mirrored else scaled)
                found = output.mask_logits.flip(-1) if mirrored else output.mask_logits
                logits.append(output.logits.float())
                maps.append(resize_logits(lift_rejected(found), size))
        return SegOutput(torch.stack(logits).mean(0), torch.stack(maps).mean(0))

    return run
