"""Augmentation and normalisation: arrays in, tensors out. The one file that imports albumentations."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

# Without this, importing albumentations asks a server for its newest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A  # type: ignore[import-untyped]
import cv2
import numpy as np
import torch
from torch import Tensor

from tw_seg.arguments import image_size
from tw_seg.errors import InputError
from tw_seg.types import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EvalTransform:
    """Resize to ``size`` and normalise; draws nothing.

    Calling it does all; `resize` and `finish` are its two parts, for a cache to keep what the first returns.

    Args:
        size: Height and width of the result in pixels, or one number for both. The aspect ratio is not kept.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].

    Attributes:
        size: Height and width of the result.

    Raises:
        InputError: For a size below 1 or a mean or std that does not fit RGB.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.size = image_size(size)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(f"mean, std: expected three numbers each, std above 0, got {mean!r} and {std!r}")
        self._mean = tuple(mean)
        # Normalised values of the 256 values of each channel: looking them up costs half of computing them.
        levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
        normalize = A.Normalize(self._mean, tuple(std), max_pixel_value=255.0)
        self._levels = tuple(normalize(image=levels)["image"].transpose(2, 0, 1).copy())

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image, RGB, uint8, at ``size``: the part that is the same in every epoch."""
        height, width = self.size
        smaller = height < image.shape[0] or width < image.shape[1]
        return _resize(image, self.size, cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)

    def resize_mask(self, mask: np.ndarray) -> np.ndarray:
        """The mask, uint8, at ``size``; every pixel keeps one of the mask's values."""
        return _resize(mask, self.size, cv2.INTER_NEAREST)

    def finish(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """What is left after `resize` and `resize_mask`; otherwise as a call. The arrays are not written to."""
        pixels = np.empty((3, *image.shape[:2]), dtype=np.float32)
        for plane, levels, result in zip(cv2.split(image), self._levels, pixels, strict=True):
            cv2.LUT(plane, levels, dst=result)
        return torch.from_numpy(pixels), None if mask is None else torch.from_numpy(mask.astype(np.int64))

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Transform one sample.

        Args:
            image: RGB, uint8, shape (h, w, 3).
            mask: uint8, shape (h, w), or ``None``.
            key: What random numbers depend on, beside the seed; not used here.

        Returns:
            The image, float32, shape (3, H, W), and the mask, int64, shape (H, W), or ``None``.
        """
        return self.finish(self.resize(image), None if mask is None else self.resize_mask(mask), key=key)


class TrainTransform(EvalTransform):
    """Resize, then scale, shift, turn and recolour at random, then normalise.

    Pixels that come from outside have the mean colour in the image and 255 (ignore) in the mask. Every number
    drawn is a function of ``seed`` and the ``key`` of the call, so it does not matter which worker does the
    work, or when.

    Args:
        size: As in `EvalTransform`.
        mean: As in `EvalTransform`.
        std: As in `EvalTransform`.
        scale: Largest relative change of size: 0.1 draws a zoom from 0.9 to 1.1.
        shift: Largest shift, as a share of height and width.
        rotate: Largest rotation, in degrees.
        color: Largest relative change of brightness, contrast and saturation; of the hue a tenth of it.
        recolor: Probability to shuffle the color channels, and, drawn apart, to invert them. For classes that
            have no color of their own, such as digits.
        flip: Mirror left and right every second time.
        seed: Seed of all that is drawn.

    Raises:
        InputError: For a strength that is negative or too large.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: float = 0.1,
        shift: float = 0.05,
        rotate: float = 10.0,
        color: float = 0.2,
        recolor: float = 0.0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value, limit in (
            ("scale", scale, 1),
            ("shift", shift, 1),
            ("rotate", rotate, 181),
            ("color", color, 1),
            ("recolor", recolor, 1.0001),
        ):
            if not 0 <= value < limit:
                raise InputError(f"{name}: expected 0 <= {name} < {limit}, got {value}")
        super().__init__(size, mean=mean, std=std)
        self._seed = seed
        steps: list[A.BasicTransform] = []
        if scale or shift or rotate:
            steps.append(
                A.Affine(
                    scale=(1 - scale, 1 + scale),
                    translate_percent=(-shift, shift),
                    rotate=(-rotate, rotate),
                    keep_ratio=True,
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=tuple(round(255 * value) for value in self._mean),
                    fill_mask=IGNORE_INDEX,
                    p=1.0,
                )
            )
        if flip:
            steps.append(A.HorizontalFlip(p=0.5))
        if recolor:
            steps += [A.ChannelShuffle(p=recolor), A.InvertImg(p=recolor)]
        if color:
            around_one = (1 - color, 1 + color)
            steps.append(A.ColorJitter(around_one, around_one, around_one, (-color / 10, color / 10), p=1.0))
        self._augment = A.Compose(steps)

    def finish(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Augment and normalise, as in `EvalTransform`; the same seed and key draw the same numbers."""
        # Shared by all steps: a fifth of the cost of `set_random_seed`, which makes new generators for each.
        generator = np.random.default_rng([self._seed, *key])
        self._augment.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        data = {"image": image} if mask is None else {"image": image, "mask": mask}
        result = self._augment(**data)
        return super().finish(result["image"], result.get("mask"))


def init_worker(worker_id: int) -> None:
    """Keep OpenCV single-threaded in a data loader's worker: its thread pool does not survive a fork."""
    cv2.setNumThreads(0)


def _resize(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    return array if array.shape[:2] == size else cv2.resize(array, size[::-1], interpolation=interpolation)
