"""Sampled classes: a training step decodes the classes that an image shows and a few of those that it does not.

A decode costs about one run of the classifier for each class of each image, so an exact step grows with the number of
classes, nearly all of them absent. An absent class matters to a loss through the sum of exponentials of the softmax
alone, which a few of them, drawn at random, estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.arguments import check_counts, check_numbers, fill_in_options
from tw_seg.errors import InputError
from tw_seg.losses.annotated import ABSENT_LOGIT
from tw_seg.models.base import SegModel, spread_pairs
from tw_seg.types import BACKGROUND, IGNORE_INDEX, SegOutput


class SampledClasses(TypedDict, total=False):
    """Which classes of an image with a mask are decoded in training.

    Attributes:
        negatives: How many of the classes that its labels exclude and its mask does not name; 2 unless given. With as
            many as there are, the step is exact. Classes of unknown label are all decoded.
    """

    negatives: int


_DEFAULTS = SampledClasses(negatives=2)


def read_sampled_classes(given: Mapping[str, Any], model: SegModel) -> SampledClasses:
    """Check the options and fill in those that are left out.

    Raises:
        InputError: Names the option, or the model if it cannot decode single classes.
    """
    if not model.can_gate:
        raise InputError(
            f"sampled_classes needs a model that decodes class by class, a HeatmapSegmenter, got "
            f"{type(model).__name__}: leave sampled_classes out"
        )
    options = SampledClasses(**fill_in_options("sampled_classes", given, _DEFAULTS))  # type: ignore[typeddict-item]
    check_counts(1, negatives=options["negatives"])
    check_numbers(negatives=options["negatives"])  # refuses None, which is no count here
    return options


def segment_sampled_classes(
    model: SegModel, images: Tensor, rows: Tensor, needed: Tensor, *, negatives: int
) -> SegOutput:
    """Classify all images and segment some of them with the needed classes and a few others.

    A class that was drawn with the probability q stands for 1 / q classes: log(q) is taken off its mask logits, as in
    sampled softmax, so that the sum of exponentials has the right expectation at every pixel. On a GPU this waits once:
    the number of pairs of an image and a class is known only then.

    Args:
        model: The model, with ``can_gate``.
        images: Shape (N, C, H, W), normalised.
        rows: Rows of ``images`` to segment, int64 (S,).
        needed: Classes that each of them is decoded for anyway, bool (S, K); the background always is.
        negatives: How many of the others are drawn for each image, see `compute_inclusion`.

    Returns:
        As the model's own forward. The mask logits of classes that are not decoded are so low that their probability
        is 0, and constant.
    """
    tape, logits = model.record(images)
    inclusion = compute_inclusion(logits.detach()[rows], needed, negatives)
    position = torch.rand(len(rows), dtype=inclusion.dtype, device=inclusion.device)
    sample, label = draw_classes(inclusion, position).nonzero().unbind(1)
    decoded = model.decode_pairs(tape, rows[sample], label)
    correction = inclusion[sample, label].log()[:, None, None, None]

    def spread(maps: Tensor) -> Tensor:
        return spread_pairs(maps - correction.to(maps.dtype), sample, label, inclusion.shape, ABSENT_LOGIT)

    return SegOutput(logits, spread(decoded.mask_logits), tuple(map(spread, decoded.aux)))


def compute_inclusion(logits: Tensor, needed: Tensor, negatives: int) -> Tensor:
    """Probability with which each class of an image is decoded.

    Needed classes are certain. The others share ``negatives`` decodes by weights that are half their image-level
    probability, relative to that of all of them, and half equal, so that none is rarer than half as often as if all
    were alike. No probability exceeds 1: what a class would have above it goes to the others.

    Args:
        logits: Image-level logits, shape (S, K).
        needed: Classes that are decoded anyway, bool, shape (S, K); the background always is.
        negatives: Decodes for the others.

    Returns:
        Probabilities in double precision, shape (S, K). Those of the classes that are not needed add up to
        ``negatives``, or are all 1 if there are no more of them.

    Examples:
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, 9.0]])
        >>> needed = torch.tensor([[True, True, False, False, False]])
        >>> [round(q, 3) for q in compute_inclusion(logits, needed, 1)[0].tolist()]
        [1.0, 1.0, 0.292, 0.292, 0.417]
    """
    needed = needed.clone()
    needed[:, BACKGROUND] = True
    count = (~needed).sum(1, keepdim=True)
    share = F.logsigmoid(logits.double()).masked_fill(needed, -torch.inf).softmax(1)
    weights = torch.where(needed, 0.0, share + 1 / count.double())
    # A class is certain if its part of the decodes that those before it leave, the largest first, is one or more.
    falling = weights.sort(1, descending=True).values
    rest = falling.flip(1).cumsum(1).flip(1)
    left = negatives - torch.arange(falling.shape[1], device=falling.device)
    certain = (left * falling >= rest).long().cumprod(1).sum(1, keepdim=True).clamp(max=falling.shape[1] - 1)
    probabilities = (weights * (negatives - certain) / rest.gather(1, certain)).clamp(max=1.0)
    return torch.where(needed | (count <= negatives), 1.0, probabilities)


def draw_classes(inclusion: Tensor, position: Tensor) -> Tensor:
    """Draw classes without replacement, each with exactly its own probability (systematic sampling).

    The probabilities lie end to end on a line, and a class is drawn if one of the points ``position``,
    ``position + 1``, ... falls on its part.

    Args:
        inclusion: Probability of each class, shape (S, K).
        position: Uniform random numbers in [0, 1), shape (S,).

    Returns:
        Bool, shape (S, K).

    Reference:
        Madow 1949, On the theory of systematic sampling, II.

    Examples:
        >>> inclusion = torch.tensor([[1.0, 0.25, 0.5, 0.25]])
        >>> [draw_classes(inclusion, torch.tensor([p])).long().tolist() for p in (0.1, 0.3, 0.9)]
        [[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[1, 0, 0, 1]]]
    """
    ends = torch.where(inclusion < 1, inclusion, 0.0).cumsum(1)
    points = (ends - position[:, None]).ceil()  # how many of them lie before each end
    before = F.pad((ends - position[:, None])[:, :-1].ceil(), (1, 0))
    return (inclusion >= 1) | (points > before)


def find_classes(masks: Tensor, num_classes: int) -> Tensor:
    """Which classes each mask (L, H, W) shows: bool (L, K)."""
    shown = torch.zeros((len(masks), IGNORE_INDEX + 1), dtype=torch.bool, device=masks.device)
    return shown.scatter_(1, masks.flatten(1), True)[:, :num_classes]
