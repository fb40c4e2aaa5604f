"""Class activation maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tw_seg.errors import InputError
from tw_seg.models.posthoc.base import PostHoc
from tw_seg.models.posthoc.feature_map import PROBE_SIZE, find_last_feature_map, record_output
from tw_seg.models.weights import find_head


class CAM(PostHoc):
    """Class activation map (Zhou et al., 2016): the head's weights at every place of the last feature map.

    Needs a classifier that ends in global average pooling and one linear layer (ResNet, MobileNetV2, ...);
    for these it is Grad-CAM without the gradient. Other classifiers: use `GradCAM`.

    Raises:
        InputError: The classifier ends otherwise.
    """

    layer: str
    """Path of the module that makes the last feature map."""
    head: str
    """Path of the linear layer that makes the logits."""

    def _prepare(self) -> None:
        self.layer = find_last_feature_map(self.classifier, self.in_channels)
        self.head = find_head(self.classifier, self.num_classes)
        head = self.classifier.get_submodule(self.head)
        size = (1, self.in_channels, PROBE_SIZE, PROBE_SIZE)
        images = torch.randn(size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            features, logits = record_output(self.classifier, self.layer, images)
            fits = isinstance(head, nn.Linear) and head.in_features == features.shape[1]
            if not fits or not torch.allclose(head(features.mean(dim=(2, 3))), logits, rtol=1e-3, atol=1e-4):
                raise InputError(
                    f"CAM needs a classifier that ends in global average pooling and one linear layer; "
                    f"{self.encoder_name!r} does not (last feature map {self.layer!r}, head {self.head!r}). "
                    "Use 'gradcam'."
                )

    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        features, _ = record_output(self.classifier, self.layer, images)
        weight = self.classifier.get_parameter(f"{self.head}.weight")[list(targets)]
        return F.conv2d(features, weight[:, :, None, None].to(features.dtype))
