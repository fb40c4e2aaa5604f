"""Grad-CAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.models.posthoc.base import PostHoc
from tw_seg.models.posthoc.feature_map import find_last_feature_map


class GradCAM(PostHoc):
    """Grad-CAM (Selvaraju et al., 2017), captum's, at the last feature map.

    Args:
        layer: Qualified name of the module whose output is read; ``None``: the last feature map before the
            classifier pools or flattens.
    """

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        gate: float = 0.5,
        layer: str | None = None,
    ) -> None:
        super().__init__(
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
            gate=gate,
        )
        names = [name for name, _ in self.classifier.named_modules() if name]
        if layer is not None and layer not in names:
            raise InputError(f"layer={layer!r} is no module of {encoder_name!r}. Its modules: {', '.join(names)}.")
        self.layer = layer or find_last_feature_map(self.classifier, in_channels)

    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        method = LayerGradCam(self.classifier, self.classifier.get_submodule(self.layer))
        return torch.cat([method.attribute(images, target=target).detach() for target in targets], dim=1)
