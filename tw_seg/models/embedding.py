"""Features of whole images from any classifier: what its last layer with weights looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tw_seg.models.base import SegModel
from tw_seg.types import SegOutput

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def embed_images(model: SegModel, images: Tensor, output: SegOutput) -> Tensor:
    """Features of images: the input of the last linear or convolutional layer that the model's classifier runs.

    Args:
        model: The model.
        images: Shape (N, C, H, W), normalised.
        output: What the model returned for them. Of a model without a classifier its image-level logits and the mean
            probability of each class over the pixels are the features.

    Returns:
        Shape (N, F).
    """
    if model.classifier_path is None:
        return torch.cat([output.logits, output.mask_logits.softmax(1).mean((2, 3))], dim=1)
    classifier = model.get_submodule(model.classifier_path)
    with torch.no_grad(), _watch_layers(classifier) as inputs:
        classifier(images)
    features = inputs[-1]
    if features.ndim == 3:  # tokens (N, T, F)
        return features.mean(1)
    return features.flatten(2).mean(2) if features.ndim > 3 else features


@contextmanager
def _watch_layers(module: nn.Module) -> Iterator[list[Tensor]]:
    """The input of each layer that runs meanwhile; nothing of it stays in the module."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        inputs[:] = [given[0]]

    handles = [layer.register_forward_pre_hook(keep) for layer in module.modules() if isinstance(layer, _LAYERS)]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
