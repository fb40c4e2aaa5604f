"""Models by name, so that configs and checkpoints hold strings and numbers only."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from tw_seg.errors import InputError
from tw_seg.models.base import SegModel
from tw_seg.models.baselines import DeepLabV3Plus, MultiTaskUNet, UNet
from tw_seg.models.classifier import ImageClassifier
from tw_seg.models.hub import CONFIG, find_file, read_config
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


def load_model(place: str | Path, *, trust_code: bool = False, **download: Any) -> SegModel:
    """Load a model that ``save_pretrained`` wrote, whatever its kind, in evaluation mode.

    No pretrained weights are fetched, and nothing is unpickled.

    Args:
        place: A local folder, or ``"user/name"`` on the Hub.
        trust_code: Whether code that its arguments name may be imported (``"package.module:factory"``).
        **download: ``revision``, ``token``, ``cache_dir``, ``force_download`` or ``local_files_only`` of
            huggingface_hub.

    Raises:
        InputError: It is not there, of no known kind, or does not fit.

    Examples:
        >>> import tempfile
        >>> model = create_model("unet", encoder_name="timm/resnet10t", classes=3)
        >>> model.info["class_names"] = ["background", "cat", "dog"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = model.save_pretrained(folder)
        ...     load_model(folder).info["class_names"]
        ['background', 'cat', 'dog']
    """
    found = read_config(find_file(str(place), CONFIG, **download), source=str(place))["class"]
    classes = {model.__name__: model for model in MODELS.values()}
    if found not in classes:
        raise InputError(
            f"{place} holds a {found}, which is none of {', '.join(classes)}: update tw_seg, or use its class"
        )
    model: SegModel = classes[found].from_pretrained(place, trust_code=trust_code, **download)
    return model
