"""From heatmaps of several depths to one map of each class at the size of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from tw_seg.arguments import check_numbers
from tw_seg.errors import InputError
from tw_seg.resize import resize_maps

RELEVANCE = ("positive", "signed")
"""Whether negative relevance is left out at once, or counts against positive until the map is cut."""

COMBINATIONS = ("mean", "geometric_mean")
"""How the maps of several depths become one."""


def check_combination(relevance: str, combine: str) -> None:
    """Check how heatmaps are combined.

    Raises:
        InputError: A name is unknown, or signed maps are to be multiplied.
    """
    if relevance not in RELEVANCE:
        raise InputError(f"relevance must be one of {', '.join(RELEVANCE)}, got {relevance!r}")
    if combine not in COMBINATIONS:
        raise InputError(f"combine must be one of {', '.join(COMBINATIONS)}, got {combine!r}")
    if relevance == "signed" and combine == "geometric_mean":
        raise InputError(
            "combine='geometric_mean' multiplies maps, and two negative values would make a positive one: use "
            "relevance='positive' with it, or combine='mean'"
        )


def combine_depths(
    heatmaps: Sequence[Tensor], size: Sequence[int], *, relevance: str = "positive", combine: str = "mean"
) -> Tensor:
    """Combine heatmaps of D depths: each is resized, divided by its largest absolute value, then their mean is taken.

    The geometric mean is the D-th root of the product: a pixel must be relevant at all depths, and a threshold means
    about the same for any D.

    Args:
        heatmaps: D tensors (N, K, h_d, w_d), signed relevance.
        size: Height and width of the result.
        relevance: ``"positive"``: negative relevance counts as 0, before anything is averaged; ``"signed"``: as it is.
        combine: ``"mean"`` or ``"geometric_mean"``.

    Returns:
        Shape (N, K, H, W), in [-1, 1], or in [0, 1] for positive relevance.

    Examples:
        >>> fine, coarse = torch.tensor([[[[4.0, 0.0, 1.0, -4.0]]]]), torch.tensor([[[[1.0]]]])
        >>> combine_depths([fine, coarse], (1, 4))
        tensor([[[[1.0000, 0.5000, 0.6250, 0.5000]]]])
        >>> combine_depths([fine, coarse], (1, 4), combine="geometric_mean")
        tensor([[[[1.0000, 0.0000, 0.5000, 0.0000]]]])
    """
    maps = [resize_maps(one.relu() if relevance == "positive" else one, size) for one in heatmaps]
    stacked = torch.stack([one / _find_peak(one) for one in maps])
    return stacked.mean(0) if combine == "mean" else stacked.prod(0).pow(1 / len(maps))


def smooth_maps(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps with a Gaussian, mirrored at the edges and cut off after three standard deviations.

    Args:
        maps: Shape (N, K, H, W).
        sigma: Standard deviation in pixels of the maps; 0 for none.

    Raises:
        InputError: Three standard deviations are as long as a side of the maps.
    """
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return maps
    if radius >= min(maps.shape[-2:]):
        height, width = maps.shape[-2:]
        raise InputError(
            f"smooth={sigma} reaches {radius} pixels, as far as images of {height}x{width}: use less than "
            f"{min(height, width) / 3:.1f}"
        )
    return gaussian_blur(maps, [2 * radius + 1] * 2, [float(sigma)] * 2)


def check_smoothing(sigma: float) -> None:
    """Check a standard deviation: a finite number, not negative.

    Raises:
        InputError: It is not.
    """
    check_numbers(smooth=sigma)


def _find_peak(maps: Tensor) -> Tensor:
    """The largest absolute value of each map, (N, K, 1, 1); a map of zeros is divided by the smallest number."""
    return maps.abs().amax(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
