"""Regions of a map: above its threshold, without small parts and holes, and as scores that compete."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EVEN = 0.5
"""Score of a pixel whose map is at its threshold, and so that of the background."""

_MARGIN = 1e-3  # above EVEN, for filled holes: more than what resizing rounds away


def clean_region(region: np.ndarray, *, min_region: int = 0, max_hole: int = 0) -> np.ndarray:
    """Remove small parts of a region, then fill its small holes.

    Parts are connected by sides and corners, holes by sides only. A corner of the image that a region cuts off is a
    hole as well.

    Args:
        region: Bool, shape (H, W).
        min_region: Parts of fewer pixels are removed.
        max_hole: Holes of up to so many pixels are filled.

    Returns:
        Bool, shape (H, W).

    Examples:
        >>> clean_region(np.array([[True, False, True, True]]), min_region=2, max_hole=0)
        array([[False, False,  True,  True]])
    """
    # Here, as most models' start has no use for it: it takes half a second.
    from skimage.morphology import remove_small_holes, remove_small_objects

    if min_region > 1:
        region = remove_small_objects(region, max_size=min_region - 1, connectivity=2)
    if max_hole > 0 and region.any():
        region = remove_small_holes(region, max_size=max_hole, connectivity=1)
    return region


def score_map(values: Tensor, threshold: float, *, min_region: int = 0, max_hole: int = 0) -> Tensor:
    """Scores of one map: above `EVEN` in its cleaned region, not above it elsewhere.

    The score of a pixel is ``m / (m + t)``, so of several classes the one whose map exceeds its own threshold by the
    largest factor has the largest score.

    Args:
        values: The map m, not negative, shape (H, W).
        threshold: Its threshold t; what is above it is the region.
        min_region: See `clean_region`.
        max_hole: Likewise.

    Returns:
        Shape (H, W), in [0, 1].

    Examples:
        >>> score_map(torch.tensor([[0.0, 0.3, 0.9]]), 0.3)
        tensor([[0.0000, 0.5000, 0.7500]])
    """
    region = (values > threshold).cpu().numpy()
    kept = torch.from_numpy(clean_region(region, min_region=min_region, max_hole=max_hole)).to(values.device)
    scores = values / (values + threshold).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(kept, scores.clamp_min(EVEN + _MARGIN), scores.clamp_max(EVEN))
