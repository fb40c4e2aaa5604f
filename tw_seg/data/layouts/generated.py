"""GeneratedData: what data sets have in common whose pictures are computed, not read."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND

LENGTHS = {"train": 2000, "val": 200, "test": 500}
"""Number of pictures of each split unless another is given."""

_SPLITS = tuple(LENGTHS)


class GeneratedData:
    """Base of data sets in which a picture is a pure function of a seed, the split and its index.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: Side of the square pictures in pixels.
        length: Number of pictures; ``None``: as in `LENGTHS`.
        seed: The seed.

    Attributes:
        classes: The class names; index 0 is the background.
        names: One name per picture.
        labels: Image-level multi-hot labels, float32, shape (length, K); the background's alone until a subclass fills
            them in.
        noun: What messages call a picture.
        smallest: The smallest size in pixels.

    Raises:
        DataError: For an unknown split, a size below ``smallest`` or an empty length.
    """

    classes: tuple[str, ...]
    noun: ClassVar[str]
    smallest: ClassVar[int]

    def __init__(self, split: str, *, size: int, length: int | None, seed: int) -> None:
        name = type(self).__name__
        if split not in _SPLITS:
            raise DataError(f"{name} has no split {split!r}; choose one of {', '.join(_SPLITS)}")
        if size < self.smallest:
            raise DataError(f"{name} needs a size of at least {self.smallest} pixels, got {size}")
        length = LENGTHS[split] if length is None else length
        if length < 1:
            raise DataError(f"{name} needs a length of at least 1 {self.noun}, got {length}")
        self.split, self.size, self.seed = split, size, seed
        self.names = tuple(f"{split}-{index:05d}" for index in range(length))
        self.labels = np.zeros((length, len(self.classes)), dtype=np.float32)
        self.labels[:, BACKGROUND] = 1

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def _find_row(self, index: int) -> int:
        """The index of a picture, counted from the end if it is negative."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.noun} {index} of {len(self)}")
        return index % len(self)

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _SPLITS.index(self.split), index, purpose])
