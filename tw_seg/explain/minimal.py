"""The smallest part of a sufficient region that is still enough: a soft mask, optimised and then made binary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tw_seg.arguments import check_counts, check_numbers
from tw_seg.errors import InputError
from tw_seg.explain.model import ExplainedModel, class_probabilities
from tw_seg.explain.pairs import dice
from tw_seg.explain.sufficient import Shown, SufficientRegions


@dataclass(frozen=True)
class Optimisation:
    """How a soft mask is optimised.

    Attributes:
        steps: Steps of AdamW at most; 0 for none, so that the sufficient region stays what it is.
        lr: Its learning rate: about what a pixel's value, from 0 to 1, changes in a step.
        size_weight: Weight of the mean of the mask over the sufficient region (lambda).
        variation_weight: Weight of its total variation, divided by that region's number of pixels (gamma).
        check_every: Steps after which the mask is made binary and looked at.
        cuts: Shares of its largest value above which a pixel is then in the region.
        patience: Steps without a lower loss after which a pair is done.

    Raises:
        InputError: A number is out of its range.
    """

    steps: int = 100
    lr: float = 0.05
    size_weight: float = 0.2
    variation_weight: float = 0.05
    check_every: int = 5
    cuts: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    patience: int = 20

    def __post_init__(self) -> None:
        check_counts(0, steps=self.steps)
        check_counts(1, check_every=self.check_every, patience=self.patience)
        check_numbers(lr=self.lr, size_weight=self.size_weight, variation_weight=self.variation_weight)
        if not self.cuts or not all(0 < cut <= 1 for cut in self.cuts):
            raise InputError(f"cuts must be shares in (0, 1], one or more, got {self.cuts!r}")


class MinimalRegions(NamedTuple):
    """A part of the sufficient region for each of P pairs.

    Attributes:
        regions: Bool, shape (P, H, W).
        dice: Dice of the predicted mask and what the model returns when shown the region only, (P,).
        reduced: Whether it is smaller than the sufficient region, bool (P,); otherwise it is that region.
        masks: The soft masks that the regions were cut from, in [0, 1], shape (P, H, W).
    """

    regions: Tensor
    dice: Tensor
    reduced: Tensor
    masks: Tensor


def compute_loss(chances: Tensor, predictions: Tensor, masks: Tensor, areas: Tensor, options: Optimisation) -> Tensor:
    """``1 - Dice + lambda mean + gamma total variation`` of soft masks, which are 0 outside their regions.

    Args:
        chances: Probabilities of the pairs' classes, shape (P, H, W).
        predictions: What they should be, bool (P, H, W).
        masks: How much of each pixel is shown, in [0, 1], shape (P, H, W).
        areas: Pixels of the sufficient regions, (P,).
        options: The weights.

    Returns:
        Shape (P,).
    """
    size = masks.sum((1, 2)) / areas
    variation = (masks.diff(dim=1).abs().sum((1, 2)) + masks.diff(dim=2).abs().sum((1, 2))) / areas
    return 1 - dice(chances, predictions) + options.size_weight * size + options.variation_weight * variation


def find_minimal_regions(
    model: ExplainedModel, shown: Shown, sufficient: SufficientRegions, *, min_dice: float, options: Optimisation
) -> MinimalRegions:
    """Search the sufficient regions for smaller ones that are enough as well.

    Of all the binary regions on the way, the smallest one is kept that is still enough, asked of the model again. Pairs
    are optimised side by side and do not depend on each other. A pair whose sufficient region is not enough, because a
    largest radius was set, is left alone.

    Args:
        model: The model, in evaluation mode; gradients are taken with respect to the masks alone.
        shown: The pairs.
        sufficient: Their sufficient regions.
        min_dice: What is enough.
        options: How to search.
    """
    result = MinimalRegions(
        sufficient.regions.clone(),
        sufficient.dice.clone(),
        torch.zeros_like(sufficient.sufficient),
        sufficient.regions.to(shown.images.dtype),
    )
    for rows in sufficient.sufficient.nonzero()[:, 0].split(model.batch_size):
        _optimise(model, shown, rows, result, min_dice, options)
    return result


def _optimise(
    model: ExplainedModel, shown: Shown, rows: Tensor, result: MinimalRegions, min_dice: float, options: Optimisation
) -> None:
    """Optimise the masks of some pairs, and write what is found into the result."""
    inside = result.regions[rows]
    areas = inside.sum((1, 2))
    masks = inside.to(shown.images.dtype).requires_grad_()
    optimiser = torch.optim.AdamW([masks], lr=options.lr, weight_decay=0.0)
    best = torch.full((len(rows),), torch.inf, device=rows.device)
    waited = torch.zeros_like(rows)
    for step in range(1, options.steps + 1):
        active = (waited < options.patience).nonzero()[:, 0]
        if len(active) == 0:
            break
        losses, masks.grad = _differentiate(model, shown, rows, masks, areas, active, options)
        optimiser.step()
        with torch.no_grad():
            masks.clamp_(0, 1).mul_(inside)
        better = losses < best[active] - 1e-3
        waited[active] = torch.where(better, 0, waited[active] + 1)
        best[active] = torch.minimum(best[active], losses)
        if step % options.check_every == 0 or step == options.steps:
            _keep_smallest(model, shown, rows[active], masks.detach()[active], result, min_dice, options.cuts)


def _differentiate(
    model: ExplainedModel,
    shown: Shown,
    rows: Tensor,
    masks: Tensor,
    areas: Tensor,
    active: Tensor,
    options: Optimisation,
) -> tuple[Tensor, Tensor]:
    """Losses of the active pairs, and their gradient with respect to all masks: 0 for the others."""
    with torch.enable_grad():
        few, some = masks[active], rows[active]
        logits = model(shown.show(some, few))
        chances = class_probabilities(logits, shown.pairs.classes[some])
        losses = compute_loss(chances, shown.pairs.predictions[some], few, areas[active], options)
        if not logits.requires_grad:
            raise InputError(
                "no gradient reaches the images through the model, which detaches them or runs without gradients: give "
                "a function without torch.no_grad, or ask for the sufficient region only, with steps=0"
            )
        (gradient,) = torch.autograd.grad(losses.sum(), masks)
    return losses.detach().float(), gradient


def _keep_smallest(
    model: ExplainedModel,
    shown: Shown,
    rows: Tensor,
    masks: Tensor,
    result: MinimalRegions,
    min_dice: float,
    cuts: tuple[float, ...],
) -> None:
    """Cut masks at several heights; a region that is enough and smaller than the one kept so far takes its place."""
    peaks = masks.amax((1, 2), keepdim=True)
    candidates = torch.stack([(masks >= cut * peaks) & (masks > 0) for cut in cuts], dim=1)
    sizes = candidates.sum((2, 3))
    wanted = sizes < result.regions[rows].sum((1, 2))[:, None]
    where, which = wanted.nonzero(as_tuple=True)
    scores = torch.full(sizes.shape, -1.0, device=sizes.device)
    scores[where, which] = shown.measure_dice(model, rows[where], candidates[where, which])
    sizes = torch.where(scores >= min_dice, sizes, candidates[0, 0].numel() + 1)
    smallest, chosen = sizes.min(1)
    found = (smallest <= candidates[0, 0].numel()).nonzero()[:, 0]
    kept, cut = rows[found], chosen[found]
    result.regions[kept] = candidates[found, cut]
    result.dice[kept] = scores[found, cut]
    result.reduced[kept] = True
    result.masks[kept] = masks[found]
