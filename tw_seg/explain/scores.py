"""How good an explanation of a mask is: does it hold what the model needs, and does it point where it should?

Heatmaps are of any method, (P, H, W), one for each pair; pixels of one value are shown and hidden in the order of their
rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tw_seg.arguments import check_counts
from tw_seg.errors import InputError
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.sufficient import Shown


class Curve(NamedTuple):
    """Dice as pixels are shown or hidden in the order of a heatmap.

    Attributes:
        shares: Shares of the pixels, from 0 to 1, shape (T + 1,).
        dice: Dice of the predicted mask and what the model returns then, shape (P, T + 1).
        area: The area under each curve (trapezoids), shape (P,).
    """

    shares: Tensor
    dice: Tensor
    area: Tensor


def rank_pixels(heatmaps: Tensor) -> Tensor:
    """The rank of each pixel in its heatmap, 0 for the largest value; the first of equal ones comes first.

    Args:
        heatmaps: Shape (P, H, W), finite.

    Returns:
        Int64, shape (P, H, W).

    Raises:
        InputError: A value is not finite.

    Examples:
        >>> rank_pixels(torch.tensor([[[0.1, 0.9, 0.1]]]))
        tensor([[[1, 0, 2]]])
    """
    if not bool(heatmaps.isfinite().all()):
        raise InputError("heatmaps must be finite, found NaN or infinity: look for what made them in the method")
    order = heatmaps.flatten(1).sort(dim=1, descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return ranks.view(heatmaps.shape)


def measure_insertion(model: ExplainedModel, shown: Shown, heatmaps: Tensor, *, steps: int = 20) -> Curve:
    """Show more and more pixels, the largest values first. A larger area is better.

    Args:
        model: The model, in evaluation mode.
        shown: The pairs.
        heatmaps: One for each pair, (P, H, W).
        steps: Number T of equal steps from nothing to the whole image.

    Reference:
        Petsiuk et al. 2018, with Dice in place of a class probability.
    """
    return _draw_curve(model, shown, heatmaps, steps, hide=False)


def measure_deletion(model: ExplainedModel, shown: Shown, heatmaps: Tensor, *, steps: int = 20) -> Curve:
    """Hide more and more pixels, the largest values first. A smaller area is better. Arguments as for insertion."""
    return _draw_curve(model, shown, heatmaps, steps, hide=True)


def measure_sufficient_size(model: ExplainedModel, shown: Shown, heatmaps: Tensor, *, min_dice: float) -> Tensor:
    """How many pixels must be shown, the largest values first, until the model returns its mask.

    By bisection: that many are enough and one less is not, unless nothing at all is. Where more pixels can make a mask
    worse, fewer may be enough as well.

    Args:
        model: The model, in evaluation mode.
        shown: The pairs.
        heatmaps: One for each pair, (P, H, W).
        min_dice: What is enough.

    Returns:
        Int64, shape (P,); at most H * W, since the whole image is always enough.
    """
    ranks = _check(shown, heatmaps)
    low = torch.full((len(ranks),), -1, device=ranks.device)
    high = torch.full_like(low, ranks[0].numel() if len(ranks) else 0)
    while len(rows := (high - low > 1).nonzero()[:, 0]):
        middle = (low[rows] + high[rows]) // 2
        enough = shown.measure_dice(model, rows, ranks[rows] < middle[:, None, None]) >= min_dice
        high[rows[enough]] = middle[enough]
        low[rows[~enough]] = middle[~enough]
    return high


def energy_inside(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """Share of the positive values that lies in a region, NaN where none is positive.

    Args:
        heatmaps: Shape (P, H, W).
        regions: Bool, of the same shape: the mask, or cues that are known.

    Returns:
        Shape (P,), in [0, 1].

    Reference:
        Wang et al. 2020 (Score-CAM), "energy-based pointing game"; Quantus' RelevanceMassAccuracy.

    Examples:
        >>> energy_inside(torch.tensor([[[3.0, 1.0, -9.0]]]), torch.tensor([[[True, False, True]]]))
        tensor([0.7500])
    """
    positive = heatmaps.clamp_min(0)
    return (positive * regions).sum((1, 2)) / positive.sum((1, 2))


def point_inside(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """Whether a largest value lies in a region: the pointing game. Arguments as for `energy_inside`.

    Returns:
        Bool, shape (P,).

    Reference:
        Zhang et al. 2018, as in Quantus' PointingGame: of several largest values one is enough.

    Examples:
        >>> point_inside(torch.tensor([[[3.0, 3.0, 1.0]]]), torch.tensor([[[False, True, False]]]))
        tensor([True])
    """
    return ((heatmaps == heatmaps.amax((1, 2), keepdim=True)) & regions).any(2).any(1)


def _draw_curve(model: ExplainedModel, shown: Shown, heatmaps: Tensor, steps: int, *, hide: bool) -> Curve:
    check_counts(1, steps=steps)
    ranks = _check(shown, heatmaps)
    shares = torch.linspace(0, 1, steps + 1, device=ranks.device)
    pixels = ranks.shape[1] * ranks.shape[2]
    rows = torch.arange(len(ranks), device=ranks.device)
    columns = []
    for share in shares:
        first = ranks < (share * pixels).round()
        columns.append(shown.measure_dice(model, rows, ~first if hide else first))
    dice = torch.stack(columns, dim=1)
    return Curve(shares, dice, torch.trapezoid(dice, shares, dim=1))


def _check(shown: Shown, heatmaps: Tensor) -> Tensor:
    if heatmaps.shape != shown.pairs.predictions.shape:
        raise InputError(
            f"heatmaps must have the shape (P, H, W) = {tuple(shown.pairs.predictions.shape)}, one for each pair, got "
            f"{tuple(heatmaps.shape)}"
        )
    return rank_pixels(heatmaps)
