"""The model that is explained: any function from images to mask logits, run in batches and left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tw_seg.arguments import check_counts, check_images
from tw_seg.errors import InputError
from tw_seg.resize import resize_logits
from tw_seg.types import SegOutput


class ExplainedModel:
    """Runs a segmentation model on as many images as one wants, and counts.

    Args:
        function: Takes images (N, C, H, W), returns mask logits (N, K, h, w), a ``SegOutput``, or a mapping that has
            them under ``"out"`` (torchvision) or ``"logits"`` (transformers). They are resized to the images. K is 1
            for one class against the rest (a sigmoid) and otherwise counts the background (a softmax).
        batch_size: Images of one call.

    Attributes:
        calls: Number of calls of the function so far.
        images: Number of images in them.

    Raises:
        InputError: ``function`` cannot be called, or ``batch_size`` is no whole number >= 1.
    """

    def __init__(self, function: Callable[[Tensor], Any], *, batch_size: int = 16) -> None:
        if not callable(function):
            raise InputError(
                f"the model must be a function from images to mask logits, got {type(function).__name__}: build it "
                "first, for instance with tw_seg.create_model"
            )
        check_counts(1, batch_size=batch_size)
        self.function = function
        self.batch_size = batch_size
        self.calls = 0
        self.images = 0

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put a module into evaluation mode, and each of its parts back into its own mode afterwards.

        What a plain function closes over is left as it is: put it into evaluation mode yourself.
        """
        modules = list(self.function.modules()) if isinstance(self.function, nn.Module) else []
        modes = [module.training for module in modules]
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode

    def __call__(self, images: Tensor) -> Tensor:
        """Mask logits of the size of the images, of one call; gradients flow if they are recorded.

        Args:
            images: Shape (N, C, H, W), N >= 1.

        Returns:
            Shape (N, K, H, W).

        Raises:
            InputError: The function returns something else, or logits that are not finite.
        """
        self.calls += 1
        self.images += len(images)
        mask_logits = read_output(self.function(images), images).mask_logits
        finite = mask_logits.detach().isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            raise InputError(
                f"the mask logits of {int((~finite).sum())} of {len(images)} images are not finite, first of image "
                f"{int((~finite).nonzero()[0])} of the batch: check its pixels, the weights and the number format"
            )
        return mask_logits

    def run(self, images: Tensor) -> Tensor:
        """Mask logits (N, K, H, W) of many images, without gradients.

        Raises:
            InputError: ``images`` is no float batch, has an axis of length 0, or as for a call.
        """
        check_images(images, allow_empty=False)
        with torch.no_grad():
            return torch.cat([self(chunk) for chunk in images.split(self.batch_size)])


def read_output(output: Any, images: Tensor) -> SegOutput:
    """What a model returned, in one form.

    Args:
        output: Mask logits (N, K, h, w), a ``SegOutput``, or a mapping that has them under ``"out"`` or ``"logits"``.
        images: What it returned them for, (N, C, H, W).

    Returns:
        Image-level logits, (N, 0) if there are none, and mask logits of the size of the images, (N, K, H, W), finite or
        not.

    Raises:
        InputError: It returned something else.
    """
    logits = output.logits if isinstance(output, SegOutput) else images.new_zeros(len(images), 0)
    if isinstance(output, SegOutput):
        output = output.mask_logits
    elif isinstance(output, Mapping):
        output = output.get("out", output.get("logits"))
    if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != len(images):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"the model must return mask logits of shape (N, K, h, w), N = {len(images)}, it returned {found}: "
            "pass a function that picks them out of what the model returns"
        )
    return SegOutput(logits, resize_logits(output, images.shape[-2:]))


def probabilities(mask_logits: Tensor) -> Tensor:
    """Probabilities of mask logits (N, K, H, W): softmax over the classes, or the sigmoid if there is one.

    Examples:
        >>> probabilities(torch.zeros(1, 1, 1, 1)).item(), probabilities(torch.zeros(1, 4, 1, 1))[0, 0].item()
        (0.5, 0.25)
    """
    return mask_logits.sigmoid() if mask_logits.shape[1] == 1 else mask_logits.softmax(1)


def predict_class(mask_logits: Tensor, classes: Tensor) -> Tensor:
    """Where each image is predicted to show its class: the largest logit, or a positive one if there is one class.

    Args:
        mask_logits: Shape (P, K, H, W).
        classes: The class of each image, int64 (P,).

    Returns:
        Bool, shape (P, H, W).

    Examples:
        >>> predict_class(torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]]), torch.tensor([1]))
        tensor([[[ True, False]]])
    """
    if mask_logits.shape[1] == 1:
        return mask_logits[:, 0] > 0
    return mask_logits.argmax(1) == classes[:, None, None]


def class_probabilities(mask_logits: Tensor, classes: Tensor) -> Tensor:
    """The probability of each image's class: mask logits (P, K, H, W) and classes, int64 (P,) -> (P, H, W).

    Examples:
        >>> class_probabilities(torch.zeros(1, 4, 1, 1), torch.tensor([2]))
        tensor([[[0.2500]]])
    """
    return probabilities(mask_logits)[torch.arange(len(classes), device=classes.device), classes]
