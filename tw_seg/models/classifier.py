"""The image-level classifier as a model: image-level pre-training is a config, not a second program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tw_seg.arguments import check_images, check_samples, class_indices
from tw_seg.models.backbones import create_classifier, load_strict
from tw_seg.types import SegOutput


class ImageClassifier(nn.Module):
    """A classifier that leaves by the same door as the segmentation models, with no mask logits.

    The state dict of ``classifier`` is what every other model's ``load_classifier_state`` takes.

    Args:
        encoder_name: See :func:`tw_seg.models.backbones.create_classifier`, as for all five arguments.
        encoder_weights: Library's weights name, a local file or ``None``.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to the encoder's constructor.

    Shapes:
        images (N, C, H, W) -> logits (N, K), mask_logits (0, K', H, W), whatever ``samples`` asks for.
    """

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = classes
        self.in_channels = in_channels
        self.classifier = create_classifier(
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
        )

    def forward(
        self, images: Tensor, classes: Sequence[int] | Tensor | None = None, samples: Tensor | None = None
    ) -> SegOutput:
        check_images(images, self.in_channels, allow_empty=False)
        check_samples(samples)
        chosen = class_indices(classes, self.num_classes, allow_empty=False)
        logits = self.classifier(images)
        return SegOutput(logits, logits.new_zeros((0, len(chosen), *images.shape[-2:])))

    def load_classifier_state(self, state: Mapping[str, Tensor]) -> None:
        """Warm start from a classifier of the same encoder and class count, every key strict."""
        load_strict(self.classifier, state, source="the classifier's state dict")
