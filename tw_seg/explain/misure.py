"""MiSuRe: which region of an image is enough for a segmentation model to return its mask (Hasany et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tw_seg.arguments import check_counts, check_shares
from tw_seg.explain.hiding import make_fill
from tw_seg.explain.minimal import MinimalRegions, Optimisation, find_minimal_regions
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.pairs import Pairs, find_pairs
from tw_seg.explain.sufficient import Shown, SufficientRegions, find_sufficient_regions


class Explanation(NamedTuple):
    """Why a model predicts the masks of P pairs of an image and a class.

    Attributes:
        pairs: The pairs, with the masks.
        sufficient: The dilated mask that is enough for each, with its Dice.
        minimal: The part of it that is left when it is made as small as can be, with its Dice.
        calls: Calls of the model, the first prediction included.
        images: Images in them.
    """

    pairs: Pairs
    sufficient: SufficientRegions
    minimal: MinimalRegions
    calls: int
    images: int


def explain_masks(
    function: Callable[[Tensor], Any],
    images: Tensor,
    *,
    classes: Sequence[int] | Tensor | None = None,
    min_dice: float = 0.9,
    fill: str = "zero",
    seed: int = 0,
    max_radius: int | None = None,
    optimisation: Optimisation | None = None,
    batch_size: int = 16,
) -> Explanation:
    """Find the regions that are enough for a model to return the masks that it predicts.

    First a predicted mask is dilated until the model, shown only that region, returns it. Then a soft mask inside this
    region is optimised to keep the model's answer and to be small and smooth; the smallest region on its way that is
    enough when it is made binary is the minimal one. A module is explained in evaluation mode; its modes, buffers,
    gradients and the random state are afterwards what they were.

    Args:
        function: From images to mask logits, see `tw_seg.explain.model.ExplainedModel`.
        images: Shape (N, C, H, W), as the model takes them.
        classes: Classes to explain where they are predicted; ``None``: all but the background.
        min_dice: Dice from which on a region is enough, in (0, 1].
        fill: What hidden pixels become, a name in `tw_seg.explain.hiding.FILLS`. Results depend on it.
        seed: Of the noise that they become.
        max_radius: By how many pixels a mask is dilated at most; ``None``: until the whole image is shown.
        optimisation: How the soft mask is optimised; ``None``: with the defaults. With ``steps=0`` no gradients are
            needed, and the minimal region is the sufficient one.
        batch_size: Images of one model call.

    Returns:
        Regions of every class that is predicted in an image, image by image; none for an image of background alone.

    Raises:
        InputError: For an argument of another type or value, and for mask logits of another shape or not finite.

    Reference:
        Hasany et al. 2024, arXiv 2406.12173.

    Examples:
        >>> def brighter_than_half(images):
        ...     return images - 0.5
        >>> found = explain_masks(brighter_than_half, torch.tensor([[[[1.0, 0.0, 0.0]]]]))
        >>> found.sufficient.regions, found.sufficient.radii
        (tensor([[[ True, False, False]]]), tensor([0]))
    """
    model = ExplainedModel(function, batch_size=batch_size)
    check_shares(min_dice=min_dice)
    check_counts(0, max_radius=max_radius, seed=seed)
    with torch.inference_mode(False), model.evaluating():
        shown = prepare(model, images, classes, fill=fill, seed=seed)
        sufficient = find_sufficient_regions(model, shown, min_dice=min_dice, max_radius=max_radius)
        minimal = find_minimal_regions(
            model, shown, sufficient, min_dice=min_dice, options=optimisation or Optimisation()
        )
    return Explanation(shown.pairs, sufficient, minimal, model.calls, model.images)


def prepare(
    model: ExplainedModel, images: Tensor, classes: Sequence[int] | Tensor | None, *, fill: str, seed: int
) -> Shown:
    """Predict masks, and make what hidden pixels become; arguments as for `explain_masks`."""
    pairs = find_pairs(model.run(images), classes)
    images = images.detach().clone()  # of no inference mode, and not the caller's to change
    return Shown(images, make_fill(images, fill, seed=seed), pairs)
