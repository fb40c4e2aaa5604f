"""Small data sets and a comparison of batches, shared by the tests of this folder."""

from __future__ import annotations

import numpy as np
import torch

from tw_seg.types import Batch, Sample


class Shapes:
    """Images of different sizes; the even ones have a mask."""

    classes = ("background", "thing")
    names = tuple(f"s{i}" for i in range(7))
    labels = np.array([[1, i % 2] for i in range(7)], dtype=np.float32)

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)
        mask = rng.integers(0, 2, image.shape[:2], dtype=np.uint8) if index % 2 == 0 else None
        return Sample(image, mask, self.labels[index], self.names[index])


class LoadOnDemand(Shapes):
    """Says which masks were read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, bool]] = []

    def __getitem__(self, index: int) -> Sample:
        raise AssertionError("training must say whether it wants the mask")

    def load(self, index: int, *, mask: bool) -> Sample:
        self.read.append((index, mask))
        sample = super().__getitem__(index)
        return sample if mask else sample._replace(mask=None)


def assert_same(one: Batch, other: Batch) -> None:
    for field in ("images", "labels", "labelled", "masks"):
        a, b = getattr(one, field), getattr(other, field)
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert one.names == other.names
    assert len(one.native_masks) == len(other.native_masks)
    assert all(torch.equal(a, b) for a, b in zip(one.native_masks, other.native_masks, strict=True))
