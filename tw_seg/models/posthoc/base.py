"""PostHoc: what the training-free models have in common.

Each method gives one map per object class; the common part makes scores of them:

1. resize to the image, keep positive values, divide by the maximum of the map: scores in [0, 1];
2. set classes to 0 whose image-level probability is below ``gate``: a method without that step paints every
   class into every image, because each map is normalised on its own;
3. the background's score is one number, ``threshold``, chosen by `PostHoc.calibrate`; a method may cut its maps
   otherwise, see `PostHoc.cut`.

The argmax of these scores is the mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tw_seg.arguments import class_indices, is_number
from tw_seg.errors import InputError
from tw_seg.models.base import SegModel
from tw_seg.models.posthoc.calibration import choose_threshold
from tw_seg.regions import ignore_uncertain
from tw_seg.resize import resize_maps
from tw_seg.types import BACKGROUND, Batch, SegOutput


class PostHoc(SegModel):
    """A training-free model; a method is a subclass with one function, `attribute`.

    The classifier is frozen and always in evaluation mode, whatever ``train()`` is called with.

    Args:
        encoder_name: See `tw_seg.models.backbones.create_classifier`, as for the next four.
        encoder_weights: Library's weights name, a local file or ``None``.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to the encoder's constructor.
        gate: Image-level probability, below 1, from which on a class may appear in the mask; 0 switches the gate off.

    Shapes:
        images (N, C, H, W) -> logits (N, K), mask_logits (S, K', H, W), which are scores in [0, 1] without a
        gradient. Images in which no class passes the gate, and classes that pass it in no image, cost nothing.
    """

    trainable = False
    needs_calibration = True
    can_export = False
    classifier_path = "classifier"
    threshold: Tensor

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        gate: float = 0.5,
    ) -> None:
        super().__init__(
            encoder_name, encoder_weights, in_channels=in_channels, classes=classes, encoder_kwargs=encoder_kwargs
        )
        if not is_number(gate) or not 0 <= gate < 1:
            raise InputError(
                f"gate must be a probability in [0, 1), got {gate!r}: 0 lets every class pass, and 1 would let none"
            )
        self.gate = gate
        self.classifier = self.create_classifier(encoder_weights).requires_grad_(False)
        self.register_buffer("threshold", torch.tensor(0.3))  # a common choice for CAM until calibrated
        self.eval()
        self._prepare()

    @abstractmethod
    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        """Attributions (N, T, h, w) of T classes' logits, for images (N, C, H, W) that require a gradient."""

    def train(self, mode: bool = True) -> PostHoc:
        return super().train(False)

    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        if torch.compiler.is_compiling():
            raise InputError(
                f"{type(self).__name__} decodes what passes a gate and differentiates inside its forward: it can be "
                "neither compiled nor exported"
            )
        if isinstance(classes, Tensor):  # the gate waits for the device in any case
            classes = class_indices(classes.cpu(), self.num_classes)
        chosen = [int(k) for k in classes]
        with torch.no_grad():
            logits: Tensor = self.classifier(images)
        if samples is not None:
            images = images.index_select(0, samples)
        maps = self._make_gated_maps(images, logits if samples is None else logits.index_select(0, samples), chosen)
        return SegOutput(logits, self.cut(maps, chosen))

    def cut(self, maps: Tensor, classes: Sequence[int]) -> Tensor:
        """Make scores of maps, whose argmax over the classes is the mask.

        Args:
            maps: Maps (S, K', H, W) in [0, 1], 0 behind the gate and for the background; may be changed in place.
            classes: The K' classes.

        Returns:
            Scores of the same shape in [0, 1].
        """
        for column in (i for i, target in enumerate(classes) if target == BACKGROUND):
            maps[:, column] = self.threshold
        return maps

    def make_maps(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        """Make the maps of some classes, whatever the gate says.

        Args:
            images: Shape (S, C, H, W), normalised.
            targets: T object classes.

        Returns:
            Shape (S, T, H, W): without negative values, divided by the maximum of the map.
        """
        # Lightning evaluates in inference mode, where nothing can be differentiated: leave it, with a copy of
        # the images that is not marked as an inference tensor.
        with torch.inference_mode(False), torch.enable_grad():
            attribution = self.attribute(images.clone().requires_grad_(), targets).detach().float()
        maps = resize_maps(attribution, images.shape[-2:]).relu()
        peak = maps.amax(dim=(2, 3), keepdim=True)
        return maps / peak.clamp_min(torch.finfo(torch.float32).tiny)

    def calibrate(self, batches: Iterable[Batch]) -> float:
        """Set ``threshold`` to the value on a grid that gives the best mean IoU on the labelled images."""
        if not self.needs_calibration:
            return super().calibrate(batches)
        threshold, miou = choose_threshold(self._score_batches(batches), self.num_classes)
        self.threshold.fill_(threshold)
        return miou

    def _prepare(self) -> None:
        """Look up what the method reads in the classifier."""

    def _score_batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Maps, not cut, and masks of the labelled images of each batch."""
        for batch in batches:
            if len(batch.labelled):
                self.check_images(batch.images)
                images = batch.images.index_select(0, batch.labelled).to(self.threshold.device)
                with torch.no_grad():
                    logits = self.classifier(images)
                rows = [None] * len(batch.masks) if batch.annotated is None else batch.annotated
                labels = batch.labels[batch.labelled]
                masks = torch.stack([ignore_uncertain(*one) for one in zip(batch.masks, labels, rows, strict=True)])
                yield self._make_gated_maps(images, logits, range(self.num_classes)), masks

    def _make_gated_maps(self, images: Tensor, logits: Tensor, chosen: Sequence[int]) -> Tensor:
        """Maps (S, K', H, W) of the chosen classes, 0 behind the gate and for the background."""
        maps = images.new_zeros((len(images), len(chosen), *images.shape[-2:]), dtype=torch.float32)
        passes = logits.float().sigmoid() >= self.gate
        wanted = passes.any(dim=0).tolist()
        columns = [i for i, target in enumerate(chosen) if target != BACKGROUND and wanted[target]]
        if columns:
            targets = [chosen[i] for i in columns]
            passes = passes[:, targets]
            rows = passes.any(dim=1).nonzero()  # images in which no class passes are not decoded either
            found = self.make_maps(images[rows[:, 0]], targets)
            maps[rows, columns] = found.masked_fill(~passes[rows[:, 0], :, None, None], 0)
        return maps
