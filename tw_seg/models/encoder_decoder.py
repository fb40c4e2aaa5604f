"""EncoderDecoder: a network of segmentation-models-pytorch as a model of this package.

The networks are that library's. This file names their encoders as the rest of tw_seg does, maps a classifier's weights
onto them and gives them the common forward.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tw_seg.errors import InputError
from tw_seg.models.backbones import TIMM_PREFIX
from tw_seg.models.base import CLASSIFIER_STATE, SegModel
from tw_seg.models.weights import find_head, load_strict
from tw_seg.types import SegOutput

log = logging.getLogger(__name__)


class EncoderDecoder(SegModel):
    """Base of the baselines: an encoder, a decoder on its features and, if ``has_head``, an image-level head.

    Without a head ``logits`` are the spatial maxima of the mask logits, and 0 ("nothing known") for images that are not
    decoded: give the image-level loss the weight 0. The head is a global average pool and one linear layer on the
    deepest feature; unlabelled images train the shared encoder through it, and ``logits`` hold for every image.

    The warm start takes the classifier's last linear layer for the head as well, so the logits of a classifier that
    ends in exactly that (ResNet, MobileNetV2, RegNet, ...) are unchanged if the encoder has its strides; a norm between
    pool and linear layer (ConvNeXt) is left out. Where the layer does not fit the deepest feature (VGG has three linear
    layers), the head starts from random weights, with a warning in the log.

    Args:
        network: Class of segmentation-models-pytorch, by name.
        encoder_name: ``"timm/NAME"``, or a torchvision name that segmentation-models-pytorch shares
            (ResNet, ResNeXt, VGG, MobileNetV2, DenseNet).
        encoder_weights: As for the classifier, see `tw_seg.models.backbones.create_classifier`.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to timm, for instance ``{"channels": [32, 64, 128, 256]}``; encoders with a torchvision
            name take none.
        class_prior: See `tw_seg.models.base.SegModel`; 0 without an image-level head.
        network_kwargs: Further arguments of the network; an ``encoder_NAME`` among them is the default of NAME in
            ``encoder_kwargs``.

    Shapes:
        images (N, C, H, W) of any size -> logits (N, K), mask_logits (S, K', H, W). The encoder runs on all
        images, the decoder on the S chosen ones only.

    Raises:
        InputError: segmentation-models-pytorch is not installed, or cannot build the network on that encoder; a
            ``class_prior`` without a head.
    """

    has_head: ClassVar[bool] = False
    decoder_paths = ("net.decoder", "net.segmentation_head")

    def __init__(
        self,
        network: str,
        encoder_name: str,
        encoder_weights: str | None,
        *,
        in_channels: int,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None,
        class_prior: float,
        network_kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__(
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
            class_prior=class_prior,
        )
        if class_prior and not self.has_head:
            raise InputError(
                f"class_prior={class_prior} needs image-level logits, and those of {type(self).__name__} are maxima "
                "of its own mask logits: leave it out, or use 'multitask_unet', which has an image-level head"
            )
        given = {
            f"encoder_{name}" if f"encoder_{name}" in network_kwargs else name: value
            for name, value in self.encoder_kwargs.items()
        }
        kwargs = {"in_channels": in_channels, "classes": classes, **network_kwargs, **given}
        self.net: Any = _create_network(network, encoder_name, self.encoder_kwargs, kwargs)
        if self.has_head:
            self.head = nn.Linear(self.net.encoder.out_channels[-1], classes)
        if encoder_weights is not None:
            # Through the classifier, so that every model starts from the very same numbers.
            classifier = self.create_classifier(encoder_weights)
            self._warm_start(classifier.state_dict(), find_head(classifier, classes))

    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        features = self.net.encoder(images)
        mask_logits = self._decode_samples(features, images.shape[-2:], samples)
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

    def decode(self, features: list[Tensor], size: torch.Size) -> Tensor:
        """Mask logits (S, K, H, W) of the features of S images, S > 0."""
        mask_logits: Tensor = self.net.segmentation_head(self.net.decoder(features))
        return mask_logits

    def _warm_start(self, state: Mapping[str, Tensor], head: str) -> None:
        """Load a complete classifier's state dict; ``head`` is the name of its last layer."""
        encoder = self.net.encoder
        load_strict(encoder, _rename_for_encoder(encoder, state), source="the classifier's encoder")
        if not self.has_head:
            return
        weight = state[f"{head}.weight"]
        if weight.shape == self.head.weight.shape:
            bias = state.get(f"{head}.bias", torch.zeros(self.num_classes))
            self.head.load_state_dict({"weight": weight, "bias": bias})
        else:
            log.warning("The image-level head starts random: the classifier's %r does not fit it.", head)

    def _decode_samples(self, features: list[Tensor], size: torch.Size, samples: Tensor | None) -> Tensor:
        """Mask logits (S, K, H, W) of the chosen samples."""
        if samples is not None and len(samples) == 0:
            # Batch norm takes no empty batch; the sum over nothing keeps the result part of the graph.
            return features[-1].new_zeros((0, self.num_classes, *size)) + features[-1][:0].sum()
        if samples is not None:
            features = [feature.index_select(0, samples) for feature in features]
        return self.decode(features, size)

    def _make_image_logits(self, deepest: Tensor, mask_logits: Tensor, samples: Tensor | None) -> Tensor:
        """Image-level logits (N, K)."""
        if self.has_head:
            logits: Tensor = self.head(F.adaptive_avg_pool2d(deepest, 1).flatten(1))
            return logits
        best = mask_logits.amax(dim=(2, 3))
        if samples is None:
            return best
        return best.new_zeros((len(deepest), self.num_classes)).index_copy(0, samples, best)


def _create_network(
    network: str, encoder_name: str, encoder_kwargs: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> Any:
    """A network of segmentation-models-pytorch by tw_seg's encoder names, with random weights; it gets ``kwargs``."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise InputError(
            "The U-Net and DeepLabV3+ baselines need segmentation-models-pytorch: pip install 'tw-seg[baselines]'."
        ) from error
    if encoder_name.startswith(TIMM_PREFIX):
        name = f"tu-{encoder_name.removeprefix(TIMM_PREFIX)}"
    elif encoder_name not in smp.encoders.get_encoder_names():
        raise InputError(
            f"encoder_name={encoder_name!r} is no encoder of segmentation-models-pytorch. Use a ResNet, "
            f"ResNeXt, VGG, MobileNetV2 or DenseNet by its torchvision name, or '{TIMM_PREFIX}NAME'."
        )
    elif encoder_kwargs:
        raise InputError(
            f"encoder_kwargs={encoder_kwargs} cannot be given to the {network} encoder {encoder_name!r}. "
            f"Use timm's ('{TIMM_PREFIX}{encoder_name}'), which takes arguments."
        )
    else:
        name = encoder_name
    try:
        return getattr(smp, network)(name, encoder_weights=None, **kwargs)
    except (TypeError, ValueError, KeyError, AssertionError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"segmentation-models-pytorch cannot build a {network} on {encoder_name!r} with encoder_kwargs="
            f"{encoder_kwargs} ({type(error).__name__}: {error})."
        ) from error


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
