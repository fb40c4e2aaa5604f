"""The image-level classifier as a model: image-level pre-training is a config, not a second program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tw_seg.models.base import SegModel
from tw_seg.types import SegOutput


class ImageClassifier(SegModel):
    """A classifier that returns what the segmentation models return, with no mask logits.

    The state dict of ``classifier`` is what every other model's ``load_classifier_state`` takes.

    Args:
        encoder_name: As for all models, see `tw_seg.models.base.SegModel`, and so the other arguments.
        encoder_weights: Library's weights name, a local file or ``None``.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to the encoder's constructor.

    Shapes:
        images (N, C, H, W) -> logits (N, K), mask_logits (0, K', H, W), whatever ``samples`` asks for.
    """

    makes_masks = False
    classifier_path = "classifier"

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            encoder_name, encoder_weights, in_channels=in_channels, classes=classes, encoder_kwargs=encoder_kwargs
        )
        self.classifier = self.create_classifier(encoder_weights)

    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        logits = self.classifier(images)
        return SegOutput(logits, logits.new_zeros((0, len(classes), *images.shape[-2:])))
