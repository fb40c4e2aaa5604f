"""What a command does about the encoder, its weights and the scale of its images where nothing is said.

``auto`` stands for "nothing is said", so that ``null`` can mean random weights. It is replaced before anything is
built: ``config.yaml`` of a run holds what was chosen.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tw_seg.arguments import check_normalization
from tw_seg.data import DATASETS
from tw_seg.data.layouts.generated import GeneratedData
from tw_seg.models.bundled import BUNDLED, BUNDLED_ENCODER, BUNDLED_ENCODERS, find_normalization
from tw_seg.models.weights import read_normalization
from tw_seg.training.datamodule import check_preparation
from tw_seg.training.restore import DATA, read_checkpoint
from tw_seg.types import IMAGENET, Normalization

log = logging.getLogger(__name__)

AUTO = "auto"
SMALL_ENCODER = "resnet18"
"""The encoder for generated pictures, and where weights are said but no encoder."""
BUNDLED_HEATMAP = {
    "decoder_kwargs": {
        "composite": "epsilon_plus",
        "tie_weights": False,
        "read_out": ["blocks.1", "blocks.2", "blocks.4"],
    },
    "compress": 2.0,
}
"""Arguments of a heatmap segmenter on the bundled encoder, those of its config in ``experiments/configs/model``."""


def choose_encoder(model: Any, dataset: str) -> None:
    """Replace ``auto``: images in files start from the bundled weights, generated ones from random weights.

    With the bundled encoder a heatmap segmenter of which nothing is said is read where that network is best read:
    at the images its relevance is so uneven that training does not begin (a loss of 30,000).

    Args:
        model: The arguments of the task, changed in place.
        dataset: Name of the data set.
    """
    data = DATASETS.get(dataset)
    in_files = data is not None and not issubclass(data, GeneratedData)
    nothing_said = model.encoder_name == AUTO and model.get("model_kwargs") is None
    if model.encoder_weights == AUTO:
        fits = model.encoder_name in (AUTO, *BUNDLED_ENCODERS)
        model.encoder_weights = BUNDLED if in_files and fits else None
        if model.encoder_weights == BUNDLED:
            model.encoder_name = BUNDLED_ENCODER if model.encoder_name == AUTO else model.encoder_name
            log.info(
                "%s starts from weights trained on ImageNet (encoder_weights: %s), as no others were given; "
                "--model.encoder_weights null begins with random ones",
                model.encoder_name,
                BUNDLED,
            )
    if model.encoder_name == AUTO:
        model.encoder_name = BUNDLED_ENCODER if model.encoder_weights == BUNDLED else SMALL_ENCODER
    if nothing_said and model.encoder_name == BUNDLED_ENCODER and model.get("model") == "heatmap":
        model.model_kwargs = copy.deepcopy(BUNDLED_HEATMAP)


def choose_normalization(data: Any, *, encoder_weights: str | None, warm_start: str | None, ckpt: str | None) -> None:
    """Replace a mean or standard deviation of ``None``: by what the weights were trained with, or ImageNet's.

    Args:
        data: The arguments of the data module, changed in place.
        encoder_weights: Those of the task.
        warm_start: Likewise.
        ckpt: The checkpoint, whose weights replace both.

    Raises:
        InputError: Others than the weights were trained with were given.
    """
    if ckpt is not None:
        trained = _read_arguments(Path(ckpt))
        check_preparation(data, {name: trained[name] for name in ("channels", "value_range") if name in trained})
        source, known = f"the weights of {ckpt}", _find_normalization(trained)
    elif warm_start is not None and (found := read_normalization(warm_start)) is not None:
        source, known = f"the weights of {warm_start}", found
    else:
        source, known = f"encoder_weights={encoder_weights!r}", find_normalization(encoder_weights)
    chosen = known or IMAGENET
    if len(chosen.mean) != data.channels:
        return  # of RGB, to which the weights are adapted: the data module asks for numbers
    data.mean = chosen.mean if data.mean is None else data.mean
    data.std = chosen.std if data.std is None else data.std
    check_normalization(Normalization(data.mean, data.std), known, source)


def _read_arguments(checkpoint: Path) -> dict[str, Any]:
    """The arguments of the data module of the run that wrote a checkpoint; none where it does not say."""
    if not checkpoint.is_file():
        return {}
    arguments: dict[str, Any] = read_checkpoint(checkpoint).get(DATA, {})
    return arguments


def _find_normalization(arguments: Mapping[str, Any]) -> Normalization | None:
    mean, std = arguments.get("mean"), arguments.get("std")
    return Normalization(tuple(mean), tuple(std)) if mean and std else None
