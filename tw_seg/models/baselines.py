"""U-Net baselines on the same encoder, with the same warm start as the heatmap model.

The networks are segmentation-models-pytorch's. This file names their encoders as the rest of tw_seg does,
maps a classifier's weights onto them and gives them the common forward.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tw_seg.errors import InputError
from tw_seg.models.backbones import TIMM_PREFIX
from tw_seg.models.base import CLASSIFIER_STATE, SegModel
from tw_seg.models.weights import find_head, load_strict
from tw_seg.types import SegOutput

log = logging.getLogger(__name__)


class UNet(SegModel):
    """U-Net (Ronneberger et al., 2015), trained on masks alone.

    It has no image-level head: ``logits`` are the spatial maxima of the mask logits, and 0 ("nothing known")
    for images that are not decoded. Give the image-level loss the weight 0.

    Args:
        encoder_name: ``"timm/NAME"``, or a torchvision name that segmentation-models-pytorch shares
            (ResNet, ResNeXt, VGG, MobileNetV2, DenseNet).
        encoder_weights: As for the classifier, see :func:`tw_seg.models.backbones.create_classifier`.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to timm, for instance ``{"channels": [32, 64, 128, 256], "output_stride": 8}``;
            encoders with a torchvision name take none.
        decoder_channels: Channels of the five decoder stages, deepest first.

    Shapes:
        images (N, C, H, W) of any size -> logits (N, K), mask_logits (S, K', H, W). The encoder runs on all
        images, the decoder on the S chosen ones only. Odd sizes need no padding: every decoder stage
        upsamples to the size of the encoder's feature.

    Raises:
        InputError: segmentation-models-pytorch is not installed, or has no such encoder.
    """

    decoder_paths = ("net.decoder", "net.segmentation_head")

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    ) -> None:
        super().__init__(
            encoder_name, encoder_weights, in_channels=in_channels, classes=classes, encoder_kwargs=encoder_kwargs
        )
        self.net: Any = _create_smp_unet(
            encoder_name=encoder_name,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=self.encoder_kwargs,
            decoder_channels=decoder_channels,
        )
        self._add_head()
        if encoder_weights is not None:
            # Through the classifier, so that every model starts from the very same numbers.
            classifier = self.create_classifier(encoder_weights)
            self._warm_start(classifier.state_dict(), find_head(classifier, classes))

    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        features = self.net.encoder(images)
        mask_logits = self._decode(features, images.shape[-2:], samples)
        logits = self._make_image_logits(features[-1], mask_logits, samples)
        if not self._are_all(classes):
            mask_logits = mask_logits[:, classes]
        return SegOutput(logits, mask_logits)

    def load_classifier_state(self, state: Mapping[str, Tensor]) -> None:
        """Warm start from the state dict of a classifier with the same encoder and class count.

        Raises:
            InputError: The state dict does not fit the classifier of that name, or an encoder key has no
                counterpart in it.
        """
        with torch.random.fork_rng(devices=[]):  # its random weights are overwritten: draw them unnoticed
            classifier = self.create_classifier()
        load_strict(classifier, state, source=CLASSIFIER_STATE)
        self._warm_start(classifier.state_dict(), find_head(classifier, self.num_classes))

    def _add_head(self) -> None:
        """Add what makes image-level logits, if anything does."""

    def _warm_start(self, state: Mapping[str, Tensor], head: str) -> None:
        """Load a complete classifier's state dict; ``head`` is the name of its last layer."""
        encoder = self.net.encoder
        load_strict(encoder, _rename_for_encoder(encoder, state), source="the classifier's encoder")

    def _decode(self, features: list[Tensor], size: torch.Size, samples: Tensor | None) -> Tensor:
        """Mask logits (S, K, H, W) of the chosen samples."""
        if samples is not None and len(samples) == 0:
            # Batch norm takes no empty batch; the sum over nothing keeps the result part of the graph.
            return features[-1].new_zeros((0, self.num_classes, *size)) + features[-1][:0].sum()
        if samples is not None:
            features = [feature.index_select(0, samples) for feature in features]
        mask_logits: Tensor = self.net.segmentation_head(self.net.decoder(features))
        return mask_logits

    def _make_image_logits(self, deepest: Tensor, mask_logits: Tensor, samples: Tensor | None) -> Tensor:
        """Image-level logits (N, K)."""
        best = mask_logits.amax(dim=(2, 3))
        if samples is None:
            return best
        return best.new_zeros((len(deepest), self.num_classes)).index_copy(0, samples, best)


class MultiTaskUNet(UNet):
    """U-Net with an image-level head (global average pool and one linear layer) on the deepest feature.

    The strongest simple user of image-level labels: unlabelled images train the shared encoder through the
    head. Arguments and shapes as :class:`UNet`; ``logits`` hold for every image.

    The warm start takes the classifier's last linear layer for the head as well, so the logits of a
    classifier that ends in exactly that (ResNet, MobileNetV2, RegNet, ...) are unchanged; a norm between pool
    and linear layer (ConvNeXt) is left out. Where the layer does not fit the deepest feature (VGG has three
    linear layers), the head starts from random weights, with a warning in the log.
    """

    def _add_head(self) -> None:
        self.head = nn.Linear(self.net.encoder.out_channels[-1], self.num_classes)

    def _warm_start(self, state: Mapping[str, Tensor], head: str) -> None:
        super()._warm_start(state, head)
        weight = state[f"{head}.weight"]
        if weight.shape == self.head.weight.shape:
            bias = state.get(f"{head}.bias", torch.zeros(self.num_classes))
            self.head.load_state_dict({"weight": weight, "bias": bias})
        else:
            log.warning("The image-level head starts random: the classifier's %r does not fit it.", head)

    def _make_image_logits(self, deepest: Tensor, mask_logits: Tensor, samples: Tensor | None) -> Tensor:
        logits: Tensor = self.head(F.adaptive_avg_pool2d(deepest, 1).flatten(1))
        return logits


def _create_smp_unet(
    *,
    encoder_name: str,
    in_channels: int,
    classes: int,
    encoder_kwargs: dict[str, Any],
    decoder_channels: Sequence[int],
) -> nn.Module:
    """segmentation-models-pytorch's U-Net, by tw_seg's encoder names, with random weights."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise InputError(
            "The U-Net baselines need segmentation-models-pytorch: pip install 'tw-seg[baselines]'."
        ) from error
    if len(decoder_channels) != 5:
        raise InputError(f"decoder_channels must be five numbers, deepest first, got {list(decoder_channels)}.")
    if encoder_name.startswith(TIMM_PREFIX):
        name = f"tu-{encoder_name.removeprefix(TIMM_PREFIX)}"
    elif encoder_name not in smp.encoders.get_encoder_names():
        raise InputError(
            f"encoder_name={encoder_name!r} has no U-Net in segmentation-models-pytorch. Use a ResNet, "
            f"ResNeXt, VGG, MobileNetV2 or DenseNet by its torchvision name, or '{TIMM_PREFIX}NAME'."
        )
    elif encoder_kwargs:
        raise InputError(
            f"encoder_kwargs={encoder_kwargs} cannot be given to the U-Net encoder {encoder_name!r}. "
            f"Use timm's ('{TIMM_PREFIX}{encoder_name}'), which takes arguments."
        )
    else:
        name = encoder_name
    try:
        net: nn.Module = smp.Unet(
            name,
            encoder_weights=None,
            decoder_channels=tuple(decoder_channels),
            in_channels=in_channels,
            classes=classes,
            **encoder_kwargs,
        )
    except (TypeError, ValueError, KeyError, AssertionError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"segmentation-models-pytorch cannot build a U-Net on {encoder_name!r} with encoder_kwargs="
            f"{encoder_kwargs} ({type(error).__name__}: {error})."
        ) from error
    return net


def _rename_for_encoder(encoder: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classifier's state dict under the encoder's names; keys without a counterpart are left out.

    segmentation-models-pytorch puts "model." before timm's keys, and timm's ``features_only`` turns
    ``stages.0`` into ``stages_0`` in some networks: names are compared with dots as underscores.
    """
    by_plain_name = {key.replace(".", "_"): value for key, value in state.items()}
    found = {}
    for key in encoder.state_dict():
        plain = key.replace(".", "_")
        while plain not in by_plain_name and plain.startswith("model_"):
            plain = plain.removeprefix("model_")
        if plain in by_plain_name:
            found[key] = by_plain_name[plain]
    return found
