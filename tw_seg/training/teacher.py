"""Pseudo-masks: what a slow copy of the model sees in unlabelled images, as far as their labels allow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tw_seg.arguments import check_counts, check_numbers, fill_in_options, is_number
from tw_seg.errors import InputError
from tw_seg.models.base import SegModel
from tw_seg.types import BACKGROUND, IGNORE_INDEX


class PseudoMasks(TypedDict, total=False):
    """How unlabelled images are trained with masks that the model itself makes.

    Attributes:
        images: Unlabelled images in a batch that get one; 6 unless given.
        start: Step from which they do; 100 unless given.
        weight: Weight of their segmentation losses; 0.5 unless given.
        confidence: Probability below which a pixel stays ignored; 0.7 unless given.
        decay: Decay of the copy's weights, by step; 0.97 unless given.
    """

    images: int
    start: int
    weight: float
    confidence: float
    decay: float


_DEFAULTS = PseudoMasks(images=6, start=100, weight=0.5, confidence=0.7, decay=0.97)


def read_pseudo_masks(given: Mapping[str, Any]) -> PseudoMasks:
    """Check the options and fill in those that are left out.

    Raises:
        InputError: Names the option.
    """
    options = fill_in_options("pseudo_masks", given, _DEFAULTS)
    check_counts(1, images=options["images"])
    check_counts(0, start=options["start"])
    check_numbers(images=options["images"], start=options["start"])  # refuses None, which is no count of these
    for name in ("weight", "confidence", "decay"):
        value, top = options[name], "" if name == "weight" else " and below 1"
        if not is_number(value) or not 0 <= value or (top and value >= 1):
            raise InputError(f"pseudo_masks: {name} must be a number of at least 0{top}, got {value!r}")
    return PseudoMasks(**options)  # type: ignore[typeddict-item]


class Teacher:
    """An exponential moving average of a model, which makes masks for its training.

    Args:
        model: The model; it is copied.
        options: See `PseudoMasks`.
        state: State of an earlier teacher to go on with.
    """

    def __init__(self, model: SegModel, options: PseudoMasks, state: Mapping[str, Any] | None = None) -> None:
        self.options = options
        # With use_buffers a frozen or a running statistic follows the model as a weight does.
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options["decay"]), use_buffers=True)
        self._average.requires_grad_(False)
        if state is not None:
            self._average.load_state_dict(dict(state))

    def state_dict(self) -> dict[str, Any]:
        """All that another process needs to go on."""
        return self._average.state_dict()

    def update(self, model: SegModel) -> None:
        """Move a step towards the model."""
        self._average.update_parameters(model)

    @torch.no_grad()
    def make_masks(self, images: Tensor, labels: Tensor) -> Tensor:
        """Masks for images by their most probable classes.

        Args:
            images: Normalised images, shape (P, C, H, W).
            labels: Their image-level labels, shape (P, K): a class with 0 is never in the mask, one with NaN may be.

        Returns:
            Class ids, int64, shape (P, H, W); 255 where no class is probable enough.
        """
        if not len(images):  # one process' part of a batch
            return torch.empty((0, *images.shape[2:]), dtype=torch.int64, device=images.device)
        output = self._average.eval()(images)
        absent = labels <= 0  # NaN, which nobody knows, is not
        absent[:, BACKGROUND] = False
        probabilities = output.mask_logits.masked_fill(absent[..., None, None], -torch.inf).softmax(1)
        confidence, masks = probabilities.max(1)
        return masks.masked_fill(confidence < self.options["confidence"], IGNORE_INDEX)
