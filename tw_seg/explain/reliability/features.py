"""All features of a prediction by name, by what they need, and the function that measures them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tw_seg.arguments import check_images
from tw_seg.errors import InputError
from tw_seg.explain.model import ExplainedModel, read_output
from tw_seg.explain.pairs import find_pairs
from tw_seg.explain.reliability.output_features import (
    IMAGE_LEVEL_FEATURES,
    MASK_FEATURES,
    RELEVANCE_FEATURES,
    measure_image_level,
    measure_mask,
    measure_relevance,
)
from tw_seg.explain.reliability.region_features import REGION_FEATURES, RegionOptions, measure_regions
from tw_seg.explain.reliability.repeat_features import (
    AUGMENTATION_FEATURES,
    DROPOUT_FEATURES,
    FLIP_FEATURES,
    measure_augmentation,
    measure_dropout,
    measure_flip,
)
from tw_seg.types import SegOutput

GROUPS: dict[str, tuple[str, ...]] = {
    "mask": MASK_FEATURES,
    "image_level": IMAGE_LEVEL_FEATURES,
    "relevance": RELEVANCE_FEATURES,
    "flip": FLIP_FEATURES,
    "augmentation": AUGMENTATION_FEATURES,
    "dropout": DROPOUT_FEATURES,
    "regions": REGION_FEATURES,
}
"""Names of the features by what they need: mask logits; image-level logits; relevance; further runs of the model."""

FEATURE_SETS: dict[str, tuple[str, ...]] = {
    "output": ("mask", "image_level", "relevance"),
    "cheap": ("mask", "image_level", "relevance", "flip"),
    "full": ("mask", "image_level", "relevance", "flip", "regions"),
}
"""Groups by the name of the set: no further run, one, and tens of them (MiSuRe)."""


def list_features(groups: Iterable[str]) -> tuple[str, ...]:
    """The names of all features of some groups.

    Raises:
        InputError: A group is unknown.

    Examples:
        >>> list_features(["flip", "dropout"])
        ('flip_agreement', 'dropout_agreement')
    """
    groups = tuple(groups)
    if unknown := sorted(set(groups) - GROUPS.keys()):
        raise InputError(f"groups of features are {', '.join(GROUPS)}, got {', '.join(unknown)}")
    return tuple(name for group in groups for name in GROUPS[group])


def find_groups(names: Iterable[str]) -> tuple[str, ...]:
    """The groups that features belong to.

    Raises:
        InputError: A name is unknown.

    Examples:
        >>> find_groups(["flip_agreement", "entropy"])
        ('mask', 'flip')
    """
    wanted = set(names)
    if unknown := sorted(wanted - {name for group in GROUPS.values() for name in group}):
        raise InputError(f"there is no feature {', '.join(unknown)}: this version of tw_seg has others, fit anew")
    return tuple(group for group, members in GROUPS.items() if wanted & set(members))


def find_offered_groups(function: Callable[[Tensor], Any], output: Any, groups: Iterable[str]) -> tuple[str, ...]:
    """Those of some groups that a model can have: image-level logits and relevance only if it has them.

    Args:
        function: The model.
        output: What it returned for some images.
        groups: Names in `GROUPS`.
    """
    lacking = set()
    if not isinstance(output, SegOutput):
        lacking = {"image_level", "relevance"}
    elif _read_relevance(function, output) is None:
        lacking = {"relevance"}
    return tuple(group for group in groups if group not in lacking)


def measure_features(
    function: Callable[[Tensor], Any],
    images: Tensor,
    *,
    groups: Iterable[str],
    output: Any = None,
    regions: RegionOptions | None = None,
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """Measure features of the predictions for some images.

    A module is run in evaluation mode; afterwards its modes, buffers and gradients and the random state are as before.

    Args:
        function: From images to mask logits, see `tw_seg.explain.model.ExplainedModel`.
        images: Shape (N, C, H, W), as the model takes them.
        groups: Names in `GROUPS`.
        output: What the function returned for these images, all classes of it; ``None``: it is run.
        regions: How regions are found; ``None``: with the defaults.
        batch_size: Images of one model call where regions are found.

    Returns:
        Float64 on the CPU, (N,), for each name. Every feature is NaN for an image whose mask logits are not finite, and
        those that need a class are NaN for a mask that shows none.

    Raises:
        InputError: A group is unknown, or needs what the model does not have.
    """
    groups = tuple(groups)
    names = list_features(groups)
    check_images(images, allow_empty=False)
    model = ExplainedModel(function, batch_size=batch_size)
    with model.evaluating(), torch.no_grad():
        output = function(images) if output is None else output
        whole = read_output(output, images)
        finite = whole.mask_logits.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            images, whole = images[finite], SegOutput(whole.logits[finite], whole.mask_logits[finite])
        found = _measure_finite(model, images, whole, groups, regions) if len(images) else {}
    features = {}
    for name in names:
        features[name] = torch.full(finite.shape, torch.nan, dtype=torch.float64)
        if name in found:
            features[name][finite.cpu()] = found[name].double().cpu()
    return features


def _measure_finite(
    model: ExplainedModel, images: Tensor, output: SegOutput, groups: tuple[str, ...], regions: RegionOptions | None
) -> dict[str, Tensor]:
    """Features of images whose mask logits are finite."""
    function, mask_logits = model.function, output.mask_logits
    pairs = find_pairs(mask_logits)

    def run(changed: Tensor) -> Tensor:
        return read_output(function(changed), changed).mask_logits

    found: dict[str, Tensor] = {}
    if "mask" in groups:
        found |= measure_mask(mask_logits, pairs)
    if "image_level" in groups:
        if output.logits.shape[1] != mask_logits.shape[1]:
            raise InputError(
                "features of the image level need image-level logits (N, K), which this model does not return: leave "
                "out the group image_level"
            )
        found |= measure_image_level(output.logits, pairs)
    if "relevance" in groups:
        relevance = _read_relevance(function, output)
        if relevance is None:
            raise InputError(
                f"relevance in mask logits is the heatmap segmenter's, not that of {type(function).__name__}: leave "
                "out the group relevance"
            )
        found |= measure_relevance(relevance, pairs)
    if "flip" in groups:
        found |= measure_flip(run, images, mask_logits)
    if "augmentation" in groups:
        found |= measure_augmentation(run, images, mask_logits)
    if "dropout" in groups:
        if not isinstance(function, nn.Module):
            raise InputError("Monte Carlo dropout needs the torch.nn.Module itself in place of a function")
        found |= measure_dropout(run, function, images, mask_logits)
    if "regions" in groups:
        found |= measure_regions(model, images, regions or RegionOptions())
    return found


def _read_relevance(function: Any, output: SegOutput) -> Tensor | None:
    """The relevance in mask logits, (N, K, H, W), of a model that has ``read_relevance`` as the heatmap segmenter."""
    read = getattr(function, "read_relevance", None)
    return None if read is None else read(output)
