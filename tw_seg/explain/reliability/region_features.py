"""Features of what a mask needs (MiSuRe, `tw_seg.explain.misure`): a mask that rests on little is easily upset.

They cost tens of model calls for each mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tw_seg.arguments import check_counts, check_shares
from tw_seg.explain.hiding import check_fill
from tw_seg.explain.minimal import Optimisation, find_minimal_regions
from tw_seg.explain.misure import prepare
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.reliability.output_features import average_pairs, measure_compactness
from tw_seg.explain.sufficient import find_sufficient_regions, measure_distances

REGION_FEATURES = (
    "alone_dice",  # Dice of the mask and what the model returns when shown the mask's pixels only
    "dice_curve",  # the same, mean over the radii of `CURVE` by which the mask is dilated
    "sufficient_radius",  # by how much it must be dilated, as a share of the shorter side
    "sufficient_size",  # share of the image that the sufficient region is
    "minimal_size",  # share of the image that the minimal region is
    "minimal_share",  # share of the sufficient region that it is
    "minimal_compactness",
)
CURVE = (0.0, 0.02, 0.05, 0.1, 0.2)
"""Radii of the Dice curve, as shares of the shorter side."""


@dataclass(frozen=True)
class RegionOptions:
    """How the regions are found; a score that was fitted with some options is used with the same.

    Attributes:
        fill: What hidden pixels become, a name in `tw_seg.explain.hiding.FILLS`.
        min_dice: Dice from which on a region is enough, in (0, 1].
        steps: Steps of the search for the minimal region at most. 0 for a model through which no gradient flows, as
            the training-free ones: the minimal region is then the sufficient one.
        seed: Of noise that hidden pixels become.

    Raises:
        InputError: A value is out of its range.
    """

    fill: str = "mean"
    min_dice: float = 0.9
    steps: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        check_fill(self.fill)
        check_shares(min_dice=self.min_dice)
        check_counts(0, steps=self.steps, seed=self.seed)


def measure_regions(model: ExplainedModel, images: Tensor, options: RegionOptions) -> dict[str, Tensor]:
    """The features of the regions that masks need.

    Args:
        model: The model, in evaluation mode.
        images: Shape (N, C, H, W).
        options: How they are found.

    Returns:
        A tensor (N,) for each name in `REGION_FEATURES`: means over the classes that a mask shows, NaN where it
        shows none.

    Raises:
        InputError: Mask logits, also those of an image that is hidden in part, are not finite.
    """
    with torch.inference_mode(False):
        shown = prepare(model, images, None, fill=options.fill, seed=options.seed)
        sufficient = find_sufficient_regions(model, shown, min_dice=options.min_dice)
        search = Optimisation(steps=options.steps)
        minimal = find_minimal_regions(model, shown, sufficient, min_dice=options.min_dice, options=search)
        rows = torch.arange(len(shown.pairs.samples), device=images.device)
        distances, side = measure_distances(shown.pairs.predictions), min(images.shape[-2:])
        curve = torch.stack([shown.measure_dice(model, rows, distances <= round(side * share)) for share in CURVE])
    pixels = images.shape[-2] * images.shape[-1]
    sufficient_size, minimal_size = sufficient.regions.sum((1, 2)), minimal.regions.sum((1, 2))
    values = (
        curve[0],
        curve.mean(0),
        sufficient.radii / side,
        sufficient_size / pixels,
        minimal_size / pixels,
        minimal_size / sufficient_size,
        measure_compactness(minimal.regions),
    )
    return {
        name: average_pairs(one, shown.pairs.samples, len(images))
        for name, one in zip(REGION_FEATURES, values, strict=True)
    }
