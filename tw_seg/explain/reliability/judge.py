"""Predictions of a data set beside what is known of them: the features of each, and its Dice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.explain.model import ExplainedModel, read_output
from tw_seg.explain.reliability.features import find_offered_groups, measure_features
from tw_seg.explain.reliability.masks import mean_dice
from tw_seg.explain.reliability.region_features import RegionOptions
from tw_seg.metrics import predict_masks
from tw_seg.types import IGNORE_INDEX, Batch


class Judged(NamedTuple):
    """Predictions for M images.

    Attributes:
        names: The images.
        features: A float64 tensor (M,) for each feature.
        dice: Of predicted and true masks at native size, float64 (M,), NaN for an image without a labelled pixel.
    """

    names: tuple[str, ...]
    features: dict[str, Tensor]
    dice: Tensor

    def choose(self, rows: Tensor) -> Judged:
        """Those of some rows, bool (M,)."""
        names = tuple(name for name, keep in zip(self.names, rows.tolist(), strict=True) if keep)
        return Judged(names, {name: one[rows] for name, one in self.features.items()}, self.dice[rows])


def judge_predictions(
    function: Callable[[Tensor], Any],
    batches: Iterable[Batch],
    *,
    groups: Iterable[str],
    regions: RegionOptions | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Judged:
    """Measure features of predictions, and their Dice where masks are known.

    Args:
        function: The model, see `tw_seg.explain.model.ExplainedModel`, of two classes or more.
        batches: Batches for evaluation, with native masks; images without one have a Dice of NaN. Pixels predicted as a
            class that was not annotated in a mask do not count.
        groups: Groups of features, see `tw_seg.explain.reliability.features.GROUPS`; those of the image level and
            of relevance are left out of what the model does not have.
        regions: How regions are found.
        change: Of the images of a batch, (N, C, H, W): what happens to them on the way, such as blur.
        device: Where the model is.

    Raises:
        InputError: There is no image.
    """
    wanted = tuple(groups)
    names: list[str] = []
    dice: list[Tensor] = []
    parts: list[dict[str, Tensor]] = []
    model = ExplainedModel(function)
    for batch in batches:
        images = batch.images.to(device)
        images = images if change is None else change(images)
        with model.evaluating(), torch.no_grad():
            output = function(images)
        if not parts:
            wanted = find_offered_groups(function, output, wanted)
        parts.append(measure_features(function, images, groups=wanted, output=output, regions=regions))
        names += batch.names
        scores = torch.full((len(images),), torch.nan, dtype=torch.float64)
        mask_logits = read_output(output, images).mask_logits[batch.labelled.to(device)]
        native = [mask.to(device) for mask in batch.native_masks]
        masks = zip(predict_masks(mask_logits, native), native, strict=True)
        for number, (predicted, mask) in enumerate(masks):
            if batch.annotated is not None:  # what nobody looked for is neither right nor wrong
                annotated = batch.annotated[number].to(device)
                predicted = predicted.masked_fill(~annotated[predicted], IGNORE_INDEX)
            scores[batch.labelled[number]] = mean_dice(predicted[None], mask[None], mask_logits.shape[1]).cpu()[0]
        dice.append(scores)
    if not parts:
        raise InputError("there is no image to predict: the split is empty")
    features = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return Judged(tuple(names), features, torch.cat(dice))
