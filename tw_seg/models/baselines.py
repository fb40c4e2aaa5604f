"""The baselines: encoder-decoders on the same encoder, with the same warm start as the heatmap model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.models.encoder_decoder import EncoderDecoder
from tw_seg.resize import resize_maps


class UNet(EncoderDecoder):
    """U-Net (Ronneberger et al., 2015), trained on masks alone.

    It has no image-level head. Odd sizes need no padding: every decoder stage upsamples to the size of the encoder's
    feature.

    Args:
        encoder_name: Encoder by name, see `tw_seg.models.encoder_decoder.EncoderDecoder`, as for all five.
        encoder_weights: Its weights.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to timm.
        decoder_channels: Channels of the five decoder stages, deepest first.
        class_prior: See `tw_seg.models.base.SegModel`; 0 here, as there is no image-level head.
    """

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        class_prior: float = 0.0,
    ) -> None:
        if not isinstance(decoder_channels, Sequence) or len(decoder_channels) != 5:
            raise InputError(f"decoder_channels must be five numbers, deepest first, got {decoder_channels!r}.")
        super().__init__(
            "Unet",
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
            class_prior=class_prior,
            network_kwargs={"decoder_channels": tuple(decoder_channels)},
        )


class MultiTaskUNet(UNet):
    """U-Net with an image-level head: the simplest strong user of image-level labels. Arguments as `UNet`."""

    has_head = True


class DeepLabV3Plus(EncoderDecoder):
    """DeepLabV3+ (Chen et al., 2018) with an image-level head.

    The deepest feature has the stride 16, or 8 with ``encoder_kwargs={"output_stride": 8}``: later strides of the
    encoder become dilations, so its image-level logits differ from those of a classifier with more strides that it was
    warm-started from. At sizes that are no multiple of the stride, the shallow feature is resized to the deep one,
    which the library upsamples by a fixed factor, and the mask logits to the image.

    In training it needs two decoded images or more in a batch: the pooled branch of its decoder normalises one number
    of each channel over the batch.

    Args:
        encoder_name: Encoder by name, see `tw_seg.models.encoder_decoder.EncoderDecoder`, as for all five. Not
            VGG or DenseNet, which have no dilated form in segmentation-models-pytorch.
        encoder_weights: Its weights.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to timm.
        decoder_channels: Channels of the decoder.
        decoder_atrous_rates: Dilations of its three dilated branches.
        class_prior: See `tw_seg.models.base.SegModel`.
    """

    has_head = True

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        decoder_channels: int = 256,
        decoder_atrous_rates: Sequence[int] = (12, 24, 36),
        class_prior: float = 0.0,
    ) -> None:
        if not isinstance(decoder_atrous_rates, Sequence) or len(decoder_atrous_rates) != 3:
            raise InputError(f"decoder_atrous_rates must be three numbers, got {decoder_atrous_rates!r}.")
        super().__init__(
            "DeepLabV3Plus",
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
            class_prior=class_prior,
            network_kwargs={
                "encoder_output_stride": 16,
                "decoder_channels": decoder_channels,
                "decoder_atrous_rates": tuple(decoder_atrous_rates),
            },
        )

    def decode(self, features: list[Tensor], size: torch.Size) -> Tensor:
        decoder, deepest = self.net.decoder, features[-1]
        if decoder.training and len(deepest) == 1:
            raise InputError(
                "DeepLabV3+ decodes two images or more in a training step, got 1: its pooled branch normalises over "
                "the batch. Give each batch two images with masks, data.labelled_per_batch >= 2"
            )
        factor = int(decoder.up.scale_factor)
        shallow = resize_maps(features[2], [factor * side for side in deepest.shape[2:]])
        return resize_maps(super().decode([*features[:2], shallow, *features[3:]], size), size)
