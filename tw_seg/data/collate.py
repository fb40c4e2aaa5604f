"""From samples to batches: load, transform, stack. Masks are read only where a batch may show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tw_seg.data.sampler import Draw
from tw_seg.types import Batch, Sample


class SegmentationData(Protocol):
    """What every data set offers.

    A data set may also have ``has_mask`` (bool, shape (N,); without it every image has a mask) and
    ``load(index, *, mask)``, which does not read the mask file unless ``mask`` is true.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Transform(Protocol):
    """What turns an image and a mask into tensors; see `tw_seg.data.transforms`."""

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]: ...


class Item(NamedTuple):
    """One transformed sample; see `Batch` for shapes and units."""

    image: Tensor
    labels: Tensor
    mask: Tensor | None
    native_mask: Tensor | None
    name: str
    size: tuple[int, int]


class TrainItems(Dataset[Item]):
    """Samples for training: asked for by a `Draw`, augmented, without native masks."""

    def __init__(self, data: SegmentationData, transform: Transform) -> None:
        self._data, self._transform = data, transform

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, draw: Draw) -> Item:
        load = getattr(self._data, "load", None)
        sample = self._data[draw.image] if load is None else load(draw.image, mask=draw.labelled)
        image, mask = self._transform(sample.image, sample.mask if draw.labelled else None, key=draw.key)
        return Item(image, torch.from_numpy(sample.labels), mask, None, sample.name, _size(sample))


class EvalItems(Dataset[Item]):
    """Samples for evaluation: by index, not augmented, with native masks."""

    def __init__(self, data: SegmentationData, transform: Transform) -> None:
        self._data, self._transform = data, transform

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Item:
        sample = self._data[index]
        image, mask = self._transform(sample.image, sample.mask)
        native = None if sample.mask is None else torch.from_numpy(sample.mask.astype(np.int64))
        return Item(image, torch.from_numpy(sample.labels), mask, native, sample.name, _size(sample))


def collate(items: Sequence[Item]) -> Batch:
    """Stack items; without any mask, ``masks`` has shape (0, H, W)."""
    images = torch.stack([item.image for item in items])
    labelled = [row for row, item in enumerate(items) if item.mask is not None]
    masks = [item.mask for item in items if item.mask is not None]
    return Batch(
        images=images,
        labels=torch.stack([item.labels for item in items]),
        labelled=torch.tensor(labelled, dtype=torch.int64),
        masks=torch.stack(masks) if masks else torch.empty((0, *images.shape[-2:]), dtype=torch.int64),
        native_masks=tuple(item.native_mask for item in items if item.native_mask is not None),
        names=tuple(item.name for item in items),
        sizes=tuple(item.size for item in items),
    )


def _size(sample: Sample) -> tuple[int, int]:
    height, width = sample.image.shape[:2]
    return height, width
