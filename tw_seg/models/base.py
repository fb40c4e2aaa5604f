"""SegModel: what all models have in common, and all that the training task may know of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tw_seg.arguments import check_images, check_numbers, check_samples, class_indices, class_tensor
from tw_seg.errors import InputError
from tw_seg.models.backbones import check_encoder, create_classifier
from tw_seg.models.hub import HubModel
from tw_seg.models.published import warn_of_scaling
from tw_seg.models.weights import load_strict
from tw_seg.types import BACKGROUND, Batch, SegOutput

Role = Literal["encoder", "decoder", "scale"]
"""What a parameter belongs to, see `SegModel.parameter_role`."""

CLASSIFIER_STATE = "the classifier's state dict"
"""What messages call the argument of `SegModel.load_classifier_state`."""


class SegModel(HubModel, ABC):
    """Maps images to image-level logits and mask logits; every model of the package is a subclass.

    A subclass makes its network in its constructor and writes `segment`, which gets checked arguments. What the
    training task may ask of a model is an attribute of the class, set where it differs from the default.

    Args:
        encoder_name: Encoder by name, see `tw_seg.models.backbones.create_classifier`, as for all five.
        encoder_weights: Library's weights name, ``"bundled"``, a local file or ``None``.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to the encoder's constructor.
        class_prior: Weight w of the image-level probability p of a class as a prior at every pixel: its mask logits get
            ``w * log p`` added, which no gradient flows through; the background's are left alone. 0: none. It rules a
            class out where the image as a whole does not show it, in training as later.

    Attributes:
        num_classes: The number of classes K.
        in_channels: Channels of the images.
        trainable: Whether it has parameters to train.
        makes_masks: Whether it segments at all; an image-level classifier does not.
        needs_calibration: Whether `calibrate` must be called before it is evaluated.
        can_gate: Whether it decodes single (image, class) pairs: `record` and `decode_pairs`.
        can_export: Whether ``torch.export`` follows its forward.
        classifier_path: Path of the module that is the image-level classifier; ``None`` for a model without one of
            its own.
        decoder_paths: Paths of the modules whose weights belong to the decoder alone.
        scale_names: Names of the parameters that only scale and shift mask logits.
    """

    trainable: ClassVar[bool] = True
    makes_masks: ClassVar[bool] = True
    needs_calibration: bool = False
    can_gate: ClassVar[bool] = False
    can_export: ClassVar[bool] = True
    classifier_path: ClassVar[str | None] = None
    decoder_paths: ClassVar[tuple[str, ...]] = ()
    scale_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        class_prior: float = 0.0,
    ) -> None:
        super().__init__()
        check_encoder(in_channels, classes, encoder_kwargs)
        check_numbers(class_prior=class_prior)
        self.num_classes = classes
        self.in_channels = in_channels
        self.encoder_name = encoder_name
        self.encoder_weights = encoder_weights
        self.encoder_kwargs = dict(encoder_kwargs or {})
        self.class_prior = class_prior

    def forward(
        self, images: Tensor, classes: Sequence[int] | Tensor | None = None, samples: Tensor | None = None
    ) -> SegOutput:
        """Classify all images and segment some of them.

        Args:
            images: Shape (N, C, H, W), normalised.
            classes: Classes to segment, by index among the K; ``None`` for all.
            samples: Rows of ``images`` to segment, int64 (S,); ``None`` for all.

        Returns:
            Logits (N, K) and mask logits (S, K', H, W); S is 0 for a model that makes no masks.

        Raises:
            InputError: For images, classes or samples of the wrong type or shape.
        """
        self.check_images(images)
        samples = check_samples(samples, images.shape[0], device=images.device)
        wanted = class_indices(classes, self.num_classes, allow_empty=False)
        output = self.segment(images, wanted, samples)
        if self.class_prior == 0:
            return output
        logits = output.logits if samples is None else output.logits.index_select(0, samples)
        ids = class_tensor(wanted, logits.device)
        prior = self.compute_prior(logits.index_select(1, ids), ids)[..., None, None]
        return output._replace(mask_logits=output.mask_logits + prior, aux=tuple(one + prior for one in output.aux))

    @abstractmethod
    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        """What `forward` returns, for arguments that are checked.

        Args:
            images: Shape (N, C, H, W).
            classes: The K' classes; a tensor where their values are known to a device alone.
            samples: Rows on the device of the images; ``None`` for all.
        """

    def compute_prior(self, logits: Tensor, classes: Tensor) -> Tensor:
        """What the image-level logits of classes add to their mask logits, see ``class_prior``: detached.

        Args:
            logits: Image-level logits, shape (..., P).
            classes: The class of each, int64 (P,).

        Returns:
            Shape (..., P), at most 0; 0 for the background.
        """
        prior = self.class_prior * F.logsigmoid(logits.detach())
        return prior.masked_fill(classes == BACKGROUND, 0.0)

    def find_heatmaps(self, output: SegOutput, samples: Tensor) -> Tensor:
        """What an output says of each pixel: its mask logits without what is added to every pixel of a class alike.

        Args:
            output: What `forward` returned for all classes.
            samples: The rows that were segmented, int64 (S,).

        Returns:
            Signed, shape (S, K, H, W); positive where a pixel speaks for the class.
        """
        if self.class_prior == 0:
            return output.mask_logits
        classes = class_tensor(tuple(range(self.num_classes)), output.logits.device)
        prior = self.compute_prior(output.logits.index_select(0, samples), classes)
        return output.mask_logits - prior[..., None, None]

    def check_images(self, images: Tensor) -> None:
        """Check that ``images`` is a float batch (N, C, H, W) of the model's channels.

        Raises:
            InputError: Says what was found and what to do.
        """
        check_images(images, self.in_channels, allow_empty=False)

    def create_classifier(self, encoder_weights: str | None = None, *, classes: int | None = None) -> nn.Module:
        """Build the image-level classifier that belongs to the encoder's name and arguments.

        Args:
            encoder_weights: See `tw_seg.models.backbones.create_classifier`.
            classes: Number of its logits; ``None`` for K.
        """
        return create_classifier(
            self.encoder_name,
            encoder_weights,
            in_channels=self.in_channels,
            classes=self.num_classes if classes is None else classes,
            encoder_kwargs=self.encoder_kwargs,
        )

    def load_classifier_state(self, state: Mapping[str, Tensor]) -> None:
        """Start from an image-level classifier of the same encoder and class count: its state dict, every key of it.

        Raises:
            InputError: Naming the keys that are missing, left over or of another shape.
        """
        if self.classifier_path is None:
            raise NotImplementedError(f"{type(self).__name__} has no classifier: it must load the state in its own way")
        classifier = self.get_submodule(self.classifier_path)
        load_strict(classifier, state, source=CLASSIFIER_STATE)
        warn_of_scaling(classifier, self.encoder_kwargs, CLASSIFIER_STATE)

    def parameter_role(self, name: str) -> Role:
        """What a parameter belongs to.

        Args:
            name: Its name in ``named_parameters()``.

        Returns:
            ``"decoder"`` for weights that only make masks, ``"scale"`` for those that only scale and shift mask
            logits, ``"encoder"`` for all others, an image-level head among them.
        """
        if name in self.scale_names:
            return "scale"
        return "decoder" if self._in_decoder(name) else "encoder"

    def encoder_batch_norms(self) -> list[_BatchNorm]:
        """The BatchNorm layers that are not the decoder's."""
        return [
            module
            for name, module in self.named_modules()
            if isinstance(module, _BatchNorm) and not self._in_decoder(name)
        ]

    def calibrate(self, batches: Iterable[Batch]) -> float:
        """Choose the numbers that are not trained, on labelled training images.

        Args:
            batches: Batches whose masks may be used, never test images.

        Returns:
            The mean IoU on these images.

        Raises:
            InputError: If the model has nothing to calibrate, see ``needs_calibration``.
        """
        raise InputError(f"{type(self).__name__} has nothing to calibrate: its needs_calibration is False")

    def record(self, images: Tensor) -> tuple[Any, Tensor]:
        """Classify all images, and keep what `decode_pairs` needs.

        Args:
            images: Shape (N, C, H, W), normalised.

        Returns:
            The tape, for `decode_pairs`, and the logits (N, K).

        Raises:
            InputError: For images of the wrong type or shape, or if the model cannot do this, see ``can_gate``.
        """
        raise self._no_pairs()

    def decode_pairs(self, tape: Any, samples: Tensor, classes: Tensor) -> SegOutput:
        """Segment chosen (sample, class) pairs: as many classes of each image as it needs.

        Args:
            tape: Of `record`.
            samples: The row of each pair's image, int64 (P,). P may be 0.
            classes: Its class among the K, int64 (P,).

        Returns:
            Logits (N, K), mask logits (P, 1, H, W) and, of the same shape, what forward gives for deep supervision.

        Raises:
            InputError: For samples or classes that are no int64 vectors of the same length, or if the model cannot do
                this, see ``can_gate``.
        """
        raise self._no_pairs()

    def read_relevance(self, output: SegOutput) -> Tensor | None:
        """The relevance that mask logits were made of, scaled: for a model whose mask logits are relevance.

        Args:
            output: What forward returned for all classes and samples.

        Returns:
            Shape (N, K, H, W), signed; ``None`` for any other model.
        """
        return None

    def decode_anew(
        self, images: Tensor, class_id: int, *, composite: str | None = None, read_out: str | float | None = None
    ) -> Tensor | None:
        """The heatmap of a class by other rules, or read elsewhere, than those that its masks are made with.

        Args:
            images: Shape (N, C, H, W), normalised.
            class_id: The class among the K.
            composite: Name of the relevance rules; ``None``: its own.
            read_out: Where the heatmap is read; ``None``: where the model does it, scaled and added up as there.

        Returns:
            Relevance, signed, shape (N, h, w); ``None`` for a model whose masks are no heatmaps.

        Raises:
            InputError: There are no such rules, or the network cannot be read there.
        """
        return None

    def _are_all(self, classes: tuple[int, ...] | Tensor) -> bool:
        """Whether these are all classes in order; a tensor is not looked at."""
        return not isinstance(classes, Tensor) and classes == tuple(range(self.num_classes))

    def _in_decoder(self, name: str) -> bool:
        return any(name == path or name.startswith(f"{path}.") for path in self.decoder_paths)

    def _no_pairs(self) -> InputError:
        return InputError(f"{type(self).__name__} does not decode single pairs of an image and a class: use forward")


def spread_pairs(maps: Tensor, samples: Tensor, classes: Tensor, shape: Sequence[int], fill: float) -> Tensor:
    """Put maps of (sample, class) pairs at their places among those of all classes.

    Args:
        maps: Shape (P, 1, H, W), as `SegModel.decode_pairs` gives them.
        samples: The row of each pair, int64 (P,).
        classes: Its class, int64 (P,).
        shape: (S, K).
        fill: What the pairs have that are not among them, a constant.

    Returns:
        Shape (S, K, H, W).
    """
    rows, columns = shape
    whole = maps.new_full((rows * columns, *maps.shape[2:]), fill)
    return whole.index_copy_(0, samples * columns + classes, maps[:, 0]).view(rows, columns, *maps.shape[2:])
