"""DigitScenes: handwritten digits over photographs, the data set that is embedded in scikit-learn.

Real handwriting (``sklearn.datasets.load_digits``, 1,797 digits of 8x8 pixels) is scaled, turned, coloured and
blended over crops of real photographs (``load_sample_images``), one to three digits a scene. Nothing is downloaded.
Splits share neither a digit nor a photograph region, and every scene is a function of (seed, split, index, size).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from tw_seg.data.layouts.generated import GeneratedData
from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND, Sample

CLASSES = ("background", *(str(digit) for digit in range(10)))

_SHARES = {
    "train": (0.0, 0.6),
    "val": (0.6, 0.75),
    "test": (0.75, 1.0),
}  # of each digit class, and of photo columns
_MASK_THRESHOLD = 0.4  # of a digit's ink; lower values let its soft rim into the mask


@dataclass(frozen=True)
class _Placed:
    """One digit in a scene; lengths in units of the scene's side."""

    digit: int
    x: float
    y: float
    height: float
    angle: float
    color: tuple[float, float, float]
    opacity: float


class DigitScenes(GeneratedData):
    """Scenes of 1 to 3 handwritten digits over a photograph; 10 classes and background.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: Side of the square scenes in pixels.
        length: Number of scenes; default 2,000 / 200 / 500.
        seed: Scenes are a pure function of it, of the split and of their index; a longer data set begins with the
            scenes of a shorter one.
        digits: How many digits are classes, from 0 on; the others are drawn all the same and belong to the background.

    Attributes:
        classes: The class names; index 0 is the background.
        names: One name per scene.
        labels: Image-level multi-hot labels, float32, shape (length, digits + 1).

    Raises:
        DataError: For an unknown split, a size below 16, an empty length or other than 1 to 10 digits.
    """

    classes = CLASSES
    noun = "scene"
    smallest = 16

    def __init__(
        self, split: str, *, size: int = 64, length: int | None = None, seed: int = 0, digits: int = 10
    ) -> None:
        if digits not in range(1, len(CLASSES)):
            raise DataError(f"DigitScenes has 1 to {len(CLASSES) - 1} digits as classes, got digits={digits!r}")
        self.classes = CLASSES[: digits + 1]
        super().__init__(split, size=size, length=length, seed=seed)
        self._scenes = [self._arrange(index) for index in range(len(self))]
        targets = _load_digits()[1]
        for index, placed in enumerate(self._scenes):
            shown = [int(targets[p.digit]) for p in placed]
            self.labels[index, [digit + 1 for digit in shown if digit < digits]] = 1
        # Rendering costs about a millisecond, an epoch asks for every scene: keep them while they are small.
        self._cache: dict[int, Sample] | None = {} if len(self) * size * size * 4 <= 2**28 else None

    def __getitem__(self, index: int) -> Sample:
        """The scene at ``index``, image and mask of shape (size, size, 3) and (size, size)."""
        index = self._find_row(index)
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self._render(index)
        if self._cache is not None:
            self._cache[index] = sample
        return sample

    def _arrange(self, index: int) -> list[_Placed]:
        rng = self._rng(index, 0)
        pool = _select_digits(self.split)
        placed: list[_Placed] = []
        for _ in range(rng.integers(1, 4)):
            for _attempt in range(10):
                height = rng.uniform(0.32, 0.55)
                x, y = rng.uniform(0.45 * height, 1 - 0.45 * height, size=2)
                # Digits may touch but not hide each other.
                if all(np.hypot(x - p.x, y - p.y) > 0.42 * (height + p.height) for p in placed):
                    red, green, blue = (float(v) for v in rng.uniform(0, 255, size=3))
                    angle, opacity = rng.uniform(-20, 20), rng.uniform(0.8, 1.0)
                    digit = int(rng.choice(pool))
                    placed.append(_Placed(digit, x, y, height, angle, (red, green, blue), opacity))
                    break
        return placed

    def _render(self, index: int) -> Sample:
        images, targets = _load_digits()
        scene = _crop_background(self.split, self.size, self._rng(index, 1))
        mask = np.zeros((self.size, self.size), dtype=np.uint8)
        for placed in self._scenes[index]:
            ink = _draw_ink(images[placed.digit], placed, self.size)
            alpha = (placed.opacity * ink)[..., None]
            color = _raise_contrast(np.array(placed.color), scene[ink > _MASK_THRESHOLD])
            scene = scene * (1 - alpha) + color * alpha
            mask[ink > _MASK_THRESHOLD] = targets[placed.digit] + 1
        mask[mask >= len(self.classes)] = BACKGROUND
        return Sample(np.rint(scene).astype(np.uint8), mask, self.labels[index], self.names[index])


@cache
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits, ink in [0, 1], shape (1797, 8, 8), and what they show, 0..9."""
    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target


@cache
def _load_photographs() -> tuple[np.ndarray, ...]:
    return tuple(load_sample_images().images)


@cache
def _select_digits(split: str) -> np.ndarray:
    """Indices of the digits of a split: a fixed share of each class."""
    targets = _load_digits()[1]
    start, stop = _SHARES[split]
    members = []
    for digit in range(10):
        indices = np.random.default_rng(digit).permutation(np.flatnonzero(targets == digit))
        members.append(indices[int(start * len(indices)) : int(stop * len(indices))])
    return np.concatenate(members)


def _crop_background(split: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of one photograph, out of the columns that belong to the split."""
    photos = _load_photographs()
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    left, right = (int(share * width) for share in _SHARES[split])
    side = int(rng.uniform(0.5, 1.0) * min(right - left, height))
    x, y = rng.integers(left, right - side + 1), rng.integers(0, height - side + 1)
    crop = Image.fromarray(photo[y : y + side, x : x + side]).resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop, dtype=np.float32)


def _draw_ink(digit: np.ndarray, placed: _Placed, size: int) -> np.ndarray:
    """Ink of a digit on the scene's canvas, in [0, 1], shape (size, size)."""
    border = 2  # so that interpolation fades to no ink
    source = Image.fromarray(np.pad(digit, border))
    scale = 8 / (placed.height * size)  # source pixels per scene pixel
    cos, sin = np.cos(np.deg2rad(placed.angle)) * scale, np.sin(np.deg2rad(placed.angle)) * scale
    center = 4 + border
    x, y = placed.x * size, placed.y * size
    matrix = (cos, sin, center - cos * x - sin * y, -sin, cos, center + sin * x - cos * y)
    canvas = source.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(canvas, dtype=np.float32), 0, 1)


def _raise_contrast(color: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Mirror a colour that would vanish against what is behind it."""
    if len(behind) == 0:
        return color
    ground = behind.mean(axis=0)
    if np.abs(color - ground).mean() >= 60:
        return color
    return np.where(ground > 127, color * 0.3, 255 - (255 - color) * 0.3)
