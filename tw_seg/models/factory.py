"""Models by name, so that configs and checkpoints hold strings and numbers only."""

from __future__ import annotations

import inspect
from typing import Any

from tw_seg.errors import InputError
from tw_seg.models.base import SegModel
from tw_seg.models.baselines import DeepLabV3Plus, MultiTaskUNet, UNet
from tw_seg.models.classifier import ImageClassifier
from tw_seg.models.posthoc.cam import CAM
from tw_seg.models.posthoc.gradcam import GradCAM
from tw_seg.models.posthoc.input_x_gradient import InputXGradient
from tw_seg.models.posthoc.lrp import LRPMask
from tw_seg.models.segmenter import HeatmapSegmenter, find_place

MODELS: dict[str, type[SegModel]] = {
    "heatmap": HeatmapSegmenter,
    "unet": UNet,
    "multitask_unet": MultiTaskUNet,
    "deeplabv3plus": DeepLabV3Plus,
    "classifier": ImageClassifier,
    "cam": CAM,
    "gradcam": GradCAM,
    "input_x_gradient": InputXGradient,
    "lrp_mask": LRPMask,
}
"""Every model. Each takes encoder_name, encoder_weights, in_channels, classes, encoder_kwargs and its own."""


def create_model(name: str, **kwargs: Any) -> SegModel:
    """Build ``MODELS[name](**kwargs)``.

    Raises:
        InputError: The name is unknown, or the model takes no such argument.
    """
    if name not in MODELS:
        raise InputError(f"Unknown model {name!r}. Use one of: {', '.join(MODELS)}.")
    signature = inspect.signature(MODELS[name])
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        takes = signature.parameters
        places = [find_place(key) for key in kwargs if key not in takes] if "decoder_kwargs" in takes else []
        hint = "".join(f" {place}." for place in places if place)
        raise InputError(f"Model {name!r}: {error}. It takes {', '.join(takes)}.{hint}") from error
    return MODELS[name](**kwargs)
