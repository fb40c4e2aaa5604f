"""Losses that guide heatmaps: the relevance of a class belongs into the region where the class may be.

They need no more than a box. Each compares heatmaps of P pairs of an image and a class that it shows with their
regions, and is the mean over the pairs, 0 without any. Positive relevance speaks for the class. Pixels that are not
``known`` do not count.

Reference:
    Rao, Böhle, Parchami-Araghi, Schiele 2023, Using Explanations to Guide Models (arXiv:2303.11932), compares the four.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tw_seg.arguments import check_numbers
from tw_seg.errors import InputError
from tw_seg.losses.masked import check_masks, mean_inside
from tw_seg.losses.sets import find_allowed
from tw_seg.processes import AddUp, keep_sum
from tw_seg.resize import resize_logits
from tw_seg.types import BACKGROUND, IGNORE_INDEX, Batch


def penalize_outside(heatmaps: Tensor, inside: Tensor, known: Tensor) -> Tensor:
    """Right for the right reasons: squares of the relevance outside of the region, the mean over all known pixels.

    Of either sign, and relative to the largest magnitude of the heatmap. Ross et al. sum over pixels, so theirs is that
    many times as large.

    Args:
        heatmaps: Signed relevance, float, shape (P, H, W).
        inside: Where the class may be, bool, shape (P, H, W).
        known: The pixels that count, bool, shape (P, H, W).

    Returns:
        A scalar in [0, 1].

    Raises:
        InputError: The shapes or types do not fit.

    Reference:
        Ross, Hughes, Doshi-Velez 2017, Right for the Right Reasons.

    Examples:
        >>> inside, known = torch.tensor([[[True, False, False, False]]]), torch.ones(1, 1, 4, dtype=torch.bool)
        >>> penalize_outside(torch.tensor([[[4.0, -2.0, 0.0, 2.0]]]), inside, known)
        tensor(0.1250)
    """
    _check_pairs(heatmaps, inside, known)
    relative = _divide_by_peak(heatmaps, torch.where(known, heatmaps.abs(), 0.0))
    return _average(mean_inside(torch.where(inside, 0.0, relative.square()), known))


def miss_energy(heatmaps: Tensor, inside: Tensor, known: Tensor) -> Tensor:
    """One minus the share of positive relevance that is inside of the region (the energy-based pointing game).

    A heatmap without any positive relevance has missed all of it.

    Args:
        heatmaps: As in `penalize_outside`, as are the others.
        inside: Where the class may be.
        known: The pixels that count.

    Returns:
        A scalar in [0, 1].

    Raises:
        InputError: The shapes or types do not fit.

    Reference:
        Rao et al. 2023, section 3.3; the share is Wang et al. 2020, Score-CAM.

    Examples:
        >>> inside, known = torch.tensor([[[True, False, False, False]]]), torch.ones(1, 1, 4, dtype=torch.bool)
        >>> miss_energy(torch.tensor([[[4.0, -2.0, 1.0, 3.0]]]), inside, known)
        tensor(0.5000)
    """
    _check_pairs(heatmaps, inside, known)
    positive = torch.where(known, heatmaps.clamp(min=0), 0.0)
    total = positive.sum(dim=(1, 2))
    hit = torch.where(inside, positive, 0.0).sum(dim=(1, 2))
    return _average(1 - hit / torch.where(total > 0, total, 1.0))


def compare_with_region(heatmaps: Tensor, inside: Tensor, known: Tensor) -> Tensor:
    """Mean distance between positive relevance, relative to its largest, and the region as 0 and 1 (L1).

    Args:
        heatmaps: As in `penalize_outside`, as are the others.
        inside: Where the class may be.
        known: The pixels that count.

    Returns:
        A scalar in [0, 1].

    Raises:
        InputError: The shapes or types do not fit.

    Reference:
        Gao et al. 2022, Aligning Eyes between Humans and Deep Neural Network (GRADIA).

    Examples:
        >>> inside, known = torch.tensor([[[True, False, False, False]]]), torch.ones(1, 1, 4, dtype=torch.bool)
        >>> compare_with_region(torch.tensor([[[4.0, -2.0, 0.0, 2.0]]]), inside, known)
        tensor(0.1250)
    """
    _check_pairs(heatmaps, inside, known)
    relative = _divide_by_peak(heatmaps.clamp(min=0), torch.where(known, heatmaps, 0.0))
    return _average(mean_inside((relative - inside.to(relative.dtype)).abs(), known))


def fill_region(heatmaps: Tensor, inside: Tensor, known: Tensor) -> Tensor:
    """Per-pixel cross-entropy (PPCE) inside of the region: minus the logarithm of positive relevance.

    It is relative to the largest. What is outside does not count. A pixel inside without positive relevance costs 100,
    as in torch's binary cross-entropy, and has no gradient.

    Args:
        heatmaps: As in `penalize_outside`, as are the others.
        inside: Where the class may be.
        known: The pixels that count.

    Returns:
        A scalar in nats, at most 100.

    Raises:
        InputError: The shapes or types do not fit.

    Reference:
        Shen et al. 2021, Human-AI Interactive and Continuous Sensemaking (HAICS).

    Examples:
        >>> inside, known = torch.tensor([[[True, True, False]]]), torch.ones(1, 1, 3, dtype=torch.bool)
        >>> fill_region(torch.tensor([[[4.0, 2.0, -1.0]]]), inside, known)
        tensor(0.3466)
    """
    _check_pairs(heatmaps, inside, known)
    relative = _divide_by_peak(heatmaps.clamp(min=0), torch.where(known, heatmaps, 0.0))
    shown = relative > 0
    logarithm = torch.where(shown, relative, 1.0).log().clamp(min=-_MOST)
    return _average(mean_inside(torch.where(shown, -logarithm, _MOST), inside & known))


_MOST = 100.0

GUIDANCE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rrr": penalize_outside,
    "energy": miss_energy,
    "l1": compare_with_region,
    "ppce": fill_region,
}
"""Guidance losses by the name that configs use."""


class GuidedPairs(NamedTuple):
    """Pairs of an image with a mask and a class of it that has a region.

    Attributes:
        rows: Row of each pair's mask, int64 (P,).
        classes: Its class, int64 (P,).
        inside: Where the class may be, bool, shape (P, H, W).
        known: Of which pixels that is known, bool, shape (P, H, W).
    """

    rows: Tensor
    classes: Tensor
    inside: Tensor
    known: Tensor


def check_guidance(weights: Mapping[str, float] | None) -> dict[str, float]:
    """Check the names and weights of guidance losses.

    Raises:
        InputError: Names the first that is wrong.

    Examples:
        >>> check_guidance({"energy": 0.1}), check_guidance(None)
        ({'energy': 0.1}, {})
    """
    if not isinstance(weights, Mapping | None):
        raise InputError(f"guidance must be a mapping such as {{'energy': 0.1}}, got {weights!r}")
    weights = dict(weights or {})
    if unknown := sorted(set(weights) - set(GUIDANCE)):
        raise InputError(f"guidance knows {', '.join(GUIDANCE)}, not {', '.join(map(str, unknown))}")
    check_numbers(**{f"guidance: {name}": weight for name, weight in weights.items()})
    return weights


def find_guided_pairs(batch: Batch, num_classes: int) -> GuidedPairs:
    """The objects of a batch that have a region: by their masks, boxes or points.

    A class is guided in an image if a pixel is of it, or may be, unless it was not annotated there or the labels
    exclude it. On a GPU this waits for the device: the number of pairs is known only then.

    Args:
        batch: The batch.
        num_classes: K.
    """
    allowed = find_allowed(batch.masks, num_classes, batch.regions)
    known = (batch.masks != IGNORE_INDEX) & ~allowed.all(dim=1)
    inside = allowed & known[:, None]
    guided = inside.any(dim=3).any(dim=2) & ~(batch.labels[batch.labelled] <= 0)
    if batch.annotated is not None:
        guided &= batch.annotated
    guided[:, BACKGROUND] = False
    rows, classes = guided.nonzero().unbind(1)
    return GuidedPairs(rows, classes, inside[rows, classes], known[rows])


def guide_heatmaps(
    heatmaps: Tensor, batch: Batch, names: Mapping[str, float], *, add_up: AddUp = keep_sum
) -> dict[str, Tensor]:
    """Guidance losses of a batch.

    Args:
        heatmaps: Of every class in every image with a mask, signed, shape (L, K, h, w); resized to the masks.
        batch: The batch.
        names: The losses, keys of `GUIDANCE`.
        add_up: See `tw_seg.losses.masked.masked_mean`.

    Returns:
        A scalar for each name.
    """
    check_masks(heatmaps, batch.masks, batch.regions)
    pairs = find_guided_pairs(batch, heatmaps.shape[1])
    chosen = resize_logits(heatmaps[pairs.rows, pairs.classes][:, None], batch.masks.shape[-2:])[:, 0]
    count = len(chosen)
    total = add_up(chosen.new_tensor(count)).clamp(min=1)
    return {name: add_up(GUIDANCE[name](chosen, pairs.inside, pairs.known) * count) / total for name in names}


def _divide_by_peak(heatmaps: Tensor, magnitudes: Tensor) -> Tensor:
    """Heatmaps relative to the largest magnitude of each; one of zeros as it is."""
    if not len(heatmaps):
        return heatmaps
    peak = magnitudes.amax(dim=(1, 2), keepdim=True)
    return heatmaps / torch.where(peak > 0, peak, 1.0)


def _average(values: Tensor) -> Tensor:
    """The mean over P pairs; 0 if there is none."""
    return values.sum() / max(1, len(values))


def _check_pairs(heatmaps: Tensor, inside: Tensor, known: Tensor) -> None:
    if heatmaps.ndim != 3 or not heatmaps.is_floating_point():
        raise InputError(
            f"heatmaps must be a float tensor (P, H, W), got {heatmaps.dtype} {tuple(heatmaps.shape)}: one row for "
            "each pair of an image and a class"
        )
    for name, region in (("inside", inside), ("known", known)):
        if region.dtype != torch.bool or region.shape != heatmaps.shape:
            raise InputError(
                f"{name} must be bool of the shape of the heatmaps {tuple(heatmaps.shape)}, got {region.dtype} "
                f"{tuple(region.shape)}"
            )
