"""Features of predicting again: does the mask stay when the image is mirrored, changed a little, or units drop out?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from tw_seg.arguments import check_counts
from tw_seg.errors import InputError
from tw_seg.explain.reliability.masks import count_mask_classes, mean_dice, predict_mask
from tw_seg.resize import resize_maps

FLIP_FEATURES = ("flip_agreement",)
AUGMENTATION_FEATURES = ("augmentation_agreement",)
DROPOUT_FEATURES = ("dropout_agreement",)

# Modules that drop something at random in training: torch's, torchvision's and timm's.
_DROPPING = ("StochasticDepth", "DropPath", "DropBlock2d")

Run = Callable[[Tensor], Tensor]
"""From images (N, C, H, W) to mask logits (N, K, H, W) of the same size."""


class Change(NamedTuple):
    """A change of images that should leave masks as they are.

    Attributes:
        apply: To images (N, C, H, W).
        undo: To the mask logits of the changed images.
    """

    apply: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor] = lambda mask_logits: mask_logits


def _mirror(images: Tensor) -> Tensor:
    return images.flip(-1)


def _scale(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda images: resize_maps(images, [max(1, round(factor * side)) for side in images.shape[-2:]])


AUGMENTATIONS: dict[str, Change] = {
    "flip": Change(_mirror, _mirror),
    "smaller": Change(_scale(0.8)),
    "larger": Change(_scale(1.25)),
    "darker": Change(lambda images: images - 0.2 * images.std((1, 2, 3), keepdim=True)),
    "brighter": Change(lambda images: images + 0.2 * images.std((1, 2, 3), keepdim=True)),
}
"""The changes of test-time augmentation; masks of another size are resized."""


def measure_flip(run: Run, images: Tensor, mask_logits: Tensor) -> dict[str, Tensor]:
    """How far the mask of the mirrored image, mirrored back, agrees with the mask: one run.

    Args:
        run: The model.
        images: Shape (N, C, H, W).
        mask_logits: What it returns for them, shape (N, K, H, W).

    Returns:
        A tensor (N,) for each name in `FLIP_FEATURES`: the mean Dice.
    """
    return {FLIP_FEATURES[0]: _measure_agreement(run, images, mask_logits, [AUGMENTATIONS["flip"]])}


def measure_augmentation(run: Run, images: Tensor, mask_logits: Tensor) -> dict[str, Tensor]:
    """Test-time augmentation: how far masks of changed images agree with the mask, mean over `AUGMENTATIONS`."""
    changes = list(AUGMENTATIONS.values())
    return {AUGMENTATION_FEATURES[0]: _measure_agreement(run, images, mask_logits, changes)}


def measure_dropout(
    run: Run, module: nn.Module, images: Tensor, mask_logits: Tensor, *, passes: int = 8, seed: int = 0
) -> dict[str, Tensor]:
    """Monte Carlo dropout (Gal and Ghahramani 2016): how far masks agree with the mask when units drop out.

    Args:
        run: The model.
        module: The module behind it, in evaluation mode; only what drops at random is put into training mode.
        images: Shape (N, C, H, W).
        mask_logits: What the model returns for them, shape (N, K, H, W).
        passes: Runs of the model.
        seed: Of what drops; the random state is afterwards what it was.

    Returns:
        A tensor (N,) for each name in `DROPOUT_FEATURES`: the mean Dice.

    Raises:
        InputError: Nothing in the module drops at random.
    """
    check_counts(1, passes=passes)
    devices = [images.device] if images.is_cuda else []
    with dropping(module), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        unchanged = Change(lambda same: same)
        return {DROPOUT_FEATURES[0]: _measure_agreement(run, images, mask_logits, [unchanged] * passes)}


@contextmanager
def dropping(module: nn.Module) -> Iterator[None]:
    """Put what drops at random into training mode, for a while: dropout, stochastic depth, drop block."""
    parts = [part for part in module.modules() if _drops(part)]
    if not parts:
        raise InputError(
            f"Monte Carlo dropout needs layers that drop at random, {type(module).__name__} has none: build it with "
            "some, for instance encoder_kwargs={'drop_path_rate': 0.1} of a timm encoder, or leave the feature out"
        )
    modes = [part.training for part in parts]
    for part in parts:
        part.train()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)


def _drops(part: nn.Module) -> bool:
    rate = getattr(part, "p", getattr(part, "drop_prob", 0.0))
    return (isinstance(part, _DropoutNd) or type(part).__name__ in _DROPPING) and bool(rate)


def _measure_agreement(run: Run, images: Tensor, mask_logits: Tensor, changes: list[Change]) -> Tensor:
    """Mean Dice of the masks and those of changed images, mean over the changes, (N,)."""
    first, classes = predict_mask(mask_logits), count_mask_classes(mask_logits)
    with torch.no_grad():
        again = [resize_maps(change.undo(run(change.apply(images))), images.shape[-2:]) for change in changes]
    return torch.stack([mean_dice(first, predict_mask(one), classes) for one in again]).mean(0)
