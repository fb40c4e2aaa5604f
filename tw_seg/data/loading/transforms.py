"""Augmentation and normalisation: arrays in, tensors out. The one file that imports albumentations."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

# Without this, importing albumentations asks a server for its newest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A  # type: ignore[import-untyped]
import cv2
import numpy as np
import torch
from torch import Tensor

from tw_seg.arguments import image_size, is_number
from tw_seg.errors import InputError
from tw_seg.types import IGNORE_INDEX, IMAGENET

_OPENCV_CHANNELS = 4


class EvalTransform:
    """Resize to ``size`` and normalise; draws nothing.

    Calling it does all; `resize` and `finish` are its two parts, for a cache to keep what the first returns.

    Args:
        size: Height and width of the result in pixels, or one number for both. The aspect ratio is not kept.
        mean: Per channel, of values in [0, 1]; their number is that of the channels.
        std: Per channel, of values in [0, 1].
        floating: Whether images are float32 from 0 to 1, not uint8.

    Attributes:
        size: Height and width of the result.
        mean: The mean of each channel.
        channels: Number of channels of the images.
        dtype: Their type.

    Raises:
        InputError: For a size below 1, or a mean and std that do not fit each other.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        mean: Sequence[float] = IMAGENET.mean,
        std: Sequence[float] = IMAGENET.std,
        floating: bool = False,
    ) -> None:
        self.size = image_size(size)
        if len(mean) != len(std) or not len(mean) or min(std) <= 0:
            raise InputError(
                f"mean, std: expected a number for each channel, std above 0, got {tuple(mean)} and {tuple(std)}"
            )
        self.mean = tuple(mean)
        self.channels = len(self.mean)
        self.dtype = np.dtype(np.float32 if floating else np.uint8)
        # Normalised values of the 256 values of each channel: looking them up costs half of computing them.
        levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], len(mean), axis=2)
        normalize = A.Normalize(self.mean, tuple(std), max_pixel_value=255.0)
        self._levels = tuple(normalize(image=levels)["image"].transpose(2, 0, 1).copy())
        self._shift, self._scale = (np.array(values, dtype=np.float32)[:, None, None] for values in (mean, std))

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image at ``size``: the part that is the same in every epoch."""
        return resize_image(self.check(image), self.size)

    def check(self, image: np.ndarray) -> np.ndarray:
        """Return an image (h, w, C) that is of the transform's channels and type.

        Raises:
            InputError: It is not.
        """
        if image.ndim != 3 or image.shape[2] != self.channels or image.dtype != self.dtype:
            raise InputError(
                f"expected an image (h, w, {self.channels}) of type {self.dtype}, got {image.shape} of {image.dtype}: "
                "mean and std need a number for each channel of the data, and a value_range makes images float32"
            )
        return image

    def resize_mask(self, mask: np.ndarray) -> np.ndarray:
        """The mask, uint8, at ``size``; every pixel keeps one of the mask's values."""
        return _resize_array(mask, self.size, cv2.INTER_NEAREST)

    def finish(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """What is left after `resize` and `resize_mask`; otherwise as a call. The arrays are not written to."""
        if image.dtype == np.uint8:
            pixels = np.empty((len(self.mean), *image.shape[:2]), dtype=np.float32)
            for plane, levels, result in zip(cv2.split(image), self._levels, pixels, strict=True):
                cv2.LUT(plane, levels, dst=result)
        else:
            pixels = (image.transpose(2, 0, 1) - self._shift) / self._scale
        return torch.from_numpy(pixels), None if mask is None else torch.from_numpy(mask.astype(np.int64))

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Transform one sample.

        Args:
            image: uint8, or float32 from 0 to 1, shape (h, w, C).
            mask: uint8, shape (h, w), or ``None``.
            key: What random numbers depend on, beside the seed; not used here.

        Returns:
            The image, float32, shape (C, H, W), and the mask, int64, shape (H, W), or ``None``.
        """
        return self.finish(self.resize(image), None if mask is None else self.resize_mask(mask), key=key)


class Augmentation(TypedDict, total=False):
    """Strengths of the augmentation in training; what is left out has its value in `DEFAULT_AUGMENTATION`.

    Attributes:
        scale: Largest relative change of size: 0.1 draws a zoom from 0.9 to 1.1.
        shift: Largest shift, as a share of height and width.
        rotate: Largest rotation, in degrees.
        color: Largest relative change of brightness, contrast and saturation; of the hue a tenth of it. Images of one
            channel, or of other channels than RGB, have neither saturation nor hue.
        recolor: Probability to shuffle the color channels, and, drawn apart, to invert them. For classes that
            have no color of their own, such as digits.
        flip: Mirror left and right every second time.
    """

    scale: float
    shift: float
    rotate: float
    color: float
    recolor: float
    flip: bool


DEFAULT_AUGMENTATION: Augmentation = {
    "scale": 0.1,
    "shift": 0.05,
    "rotate": 10.0,
    "color": 0.2,
    "recolor": 0.0,
    "flip": False,
}

# Largest strengths, and whether they are strengths themselves.
_LIMITS = {"scale": (1, "<"), "shift": (1, "<"), "rotate": (180, "<="), "color": (1, "<"), "recolor": (1, "<=")}


def complete_augmentation(augmentation: Augmentation | None) -> Augmentation:
    """Check the given strengths and add the default ones.

    Raises:
        InputError: For an unknown name or a value that is too large, negative or no number.

    Examples:
        >>> complete_augmentation({"flip": True})["flip"], complete_augmentation(None)["rotate"]
        (True, 10.0)
    """
    given: dict[str, Any] = dict(augmentation or {})
    unknown = sorted(given.keys() - DEFAULT_AUGMENTATION.keys())
    if unknown:
        raise InputError(
            f"augmentation: expected the keys {', '.join(DEFAULT_AUGMENTATION)}, got {', '.join(map(repr, unknown))}"
        )
    for name, value in given.items():
        if name == "flip":
            fits, expected = isinstance(value, bool), "true or false"
        else:
            limit, sign = _LIMITS[name]
            fits = is_number(value) and 0 <= value and (value < limit or (sign == "<=" and value == limit))
            expected = f"a number, 0 <= {name} {sign} {limit}"
        if not fits:
            raise InputError(f"augmentation: {name} must be {expected}, got {value!r}")
    return {**DEFAULT_AUGMENTATION, **(augmentation or {})}


class TrainTransform:
    """Resize, then scale, shift, turn and recolor at random, then normalise.

    Pixels that come from outside have the mean color in the image and 255 (ignore) in the mask. Every number
    drawn is a function of ``seed`` and the ``key`` of the call, so it does not matter which worker does the
    work, or when.

    Args:
        plain: What is done without augmentation: gives size and normalisation.
        augmentation: Strengths; see `Augmentation`.
        seed: Seed of all that is drawn.

    Attributes:
        size: Height and width of the result.

    Raises:
        InputError: For an unknown or unfit strength.
    """

    def __init__(self, plain: EvalTransform, augmentation: Augmentation | None = None, *, seed: int = 0) -> None:
        self.size, self.channels, self.dtype = plain.size, plain.channels, plain.dtype
        self._plain = plain
        self._seed = seed
        self._augment = A.Compose(_make_steps(complete_augmentation(augmentation), plain.mean, plain.dtype))

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image at ``size``."""
        return self._plain.resize(image)

    def resize_mask(self, mask: np.ndarray) -> np.ndarray:
        """The mask, uint8, at ``size``."""
        return self._plain.resize_mask(mask)

    def finish(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Augment and normalise, as in `EvalTransform`; the same seed and key draw the same numbers."""
        # Shared by all steps: a fifth of the cost of `set_random_seed`, which makes new generators for each.
        generator = np.random.default_rng([self._seed, *key])
        self._augment.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        data = {"image": image} if mask is None else {"image": image, "mask": mask}
        result = self._augment(**data)
        return self._plain.finish(result["image"], result.get("mask"))

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Transform one sample, as `EvalTransform` does; what is drawn depends on the seed and ``key``."""
        return self.finish(self.resize(image), None if mask is None else self.resize_mask(mask), key=key)


class _Affine(A.Affine):
    """An affine transform of any number of channels: OpenCV fills what comes from outside with four values at most."""

    def apply(self, img: np.ndarray, matrix: np.ndarray, output_shape: tuple[int, int], **params: Any) -> np.ndarray:
        if img.shape[2] <= _OPENCV_CHANNELS:
            return np.asarray(super().apply(img, matrix, output_shape, **params))
        return _join_groups(
            cv2.warpAffine(
                np.ascontiguousarray(img[..., group]),
                matrix[:2],
                output_shape[::-1],
                flags=self.interpolation,
                borderMode=self.border_mode,
                borderValue=self.fill[group],
            )
            for group in _group_channels(img.shape[2])
        )


def _make_steps(strengths: Augmentation, mean: tuple[float, ...], dtype: np.dtype[Any]) -> list[A.BasicTransform]:
    scale, shift, rotate, color = (strengths[name] for name in ("scale", "shift", "rotate", "color"))
    steps: list[A.BasicTransform] = []
    if scale or shift or rotate:
        steps.append(
            _Affine(
                scale=(1 - scale, 1 + scale),
                translate_percent=(-shift, shift),
                rotate=(-rotate, rotate),
                keep_ratio=True,
                border_mode=cv2.BORDER_CONSTANT,
                fill=tuple(round(255 * value) if dtype == np.uint8 else float(value) for value in mean),
                fill_mask=IGNORE_INDEX,
                p=1.0,
            )
        )
    if strengths["flip"]:
        steps.append(A.HorizontalFlip(p=0.5))
    if strengths["recolor"]:
        steps += [A.ChannelShuffle(p=strengths["recolor"]), A.InvertImg(p=strengths["recolor"])]
    if color:
        around_one = (1 - color, 1 + color)
        if len(mean) not in (1, 3):
            return [*steps, A.RandomBrightnessContrast(color, color, brightness_by_max=False, p=1.0)]
        steps.append(A.ColorJitter(around_one, around_one, around_one, (-color / 10, color / 10), p=1.0))
    return steps


def init_worker(worker_id: int) -> None:
    """Keep OpenCV single-threaded in a data loader's worker: its thread pool does not survive a fork."""
    cv2.setNumThreads(0)


def _group_channels(count: int) -> list[slice]:
    """The channels in groups of as many as every function of OpenCV takes."""
    return [slice(start, start + _OPENCV_CHANNELS) for start in range(0, count, _OPENCV_CHANNELS)]


def _join_groups(groups: Iterable[np.ndarray]) -> np.ndarray:
    """Images of some channels each, (H, W, c) or (H, W), as one (H, W, C)."""
    parts = [group if group.ndim == 3 else group[..., None] for group in groups]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (h, w, C): by areas where it gets smaller, otherwise bilinearly.

    Raises:
        InputError: OpenCV cannot, as of images with a side above 32,767 pixels.
    """
    smaller = size[0] < image.shape[0] or size[1] < image.shape[1]
    return _resize_array(image, size, cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _resize_array(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    try:
        if array.ndim == 2:
            return cv2.resize(array, size[::-1], interpolation=interpolation)
        return _join_groups(
            cv2.resize(np.ascontiguousarray(array[..., group]), size[::-1], interpolation=interpolation)
            for group in _group_channels(array.shape[2])
        )
    except cv2.error as error:
        height, width = array.shape[:2]
        raise InputError(
            f"OpenCV cannot resize {height}x{width} pixels (height x width) to {size[0]}x{size[1]} ({error}); cut the "
            "image into tiles"
        ) from error
