"""The guided filter: maps that follow the edges of their images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tw_seg.arguments import check_counts, check_numbers, is_number
from tw_seg.errors import InputError


def check_guide(radius: int, epsilon: float) -> None:
    """Check the numbers of the filter.

    Raises:
        InputError: The radius is no whole number >= 0, or epsilon not positive or not finite.
    """
    check_counts(0, guide_radius=radius)
    check_numbers(guide_radius=radius)  # refuses None, which is no count here
    if not is_number(epsilon) or not 0 < epsilon < math.inf:
        raise InputError(f"guide_epsilon must be a finite number > 0, got {epsilon!r}")


def filter_guided(maps: Tensor, guides: Tensor, *, radius: int, epsilon: float) -> Tensor:
    """Filter maps so that in each window they are the linear function of the guide that is closest to the map.

    With means over the square windows of ``2 * radius + 1`` pixels, cut off at the edges of the image::

        a = cov(I, p) / (var(I) + epsilon),  b = mean(p) - a * mean(I),  q = mean(a) * I + mean(b)

    Where the guide varies by much more than the root of epsilon the map gets its edges, elsewhere it is averaged.

    He, Sun, Tang: Guided Image Filtering, IEEE TPAMI 35 (6), 2013, equations 5, 6 and 8.

    Args:
        maps: p, shape (N, K, H, W).
        guides: I, grey images, shape (N, 1, H, W); see `make_guides`.
        radius: Of the windows, in pixels; 0 returns the maps.
        epsilon: In units of the guide, squared.

    Returns:
        q, shape (N, K, H, W). It may leave the range of the maps a little.

    Examples:
        >>> step = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]])
        >>> filter_guided(step, step, radius=1, epsilon=1e-6).round(decimals=2)  # an edge of the guide stays
        tensor([[[[0., 0., 1., 1.]]]])
    """
    if radius == 0:
        return maps

    def average(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)

    mean_guide, mean_map = average(guides), average(maps)
    covariance = average(guides * maps) - mean_guide * mean_map
    variance = average(guides.square()) - mean_guide.square()
    slope = covariance / (variance.relu() + epsilon)
    return average(slope) * guides + average(mean_map - slope * mean_guide)


def make_guides(images: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) in [0, 1]: means over the channels of (N, C, H, W), stretched to that range."""
    grey = images.mean(dim=1, keepdim=True)
    low, high = grey.amin(dim=(2, 3), keepdim=True), grey.amax(dim=(2, 3), keepdim=True)
    return (grey - low) / (high - low).clamp_min(torch.finfo(grey.dtype).tiny)
