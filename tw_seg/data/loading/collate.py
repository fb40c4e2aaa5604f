"""From samples to batches: load, transform, stack. Masks are read only where a batch may show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tw_seg.data.loading.sampler import Draw
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
    """What turns an image and a mask into tensors, in two parts; see `tw_seg.data.loading.transforms`."""

    size: tuple[int, int]

    def resize(self, image: np.ndarray) -> np.ndarray: ...

    def resize_mask(self, mask: np.ndarray) -> np.ndarray: ...

    def finish(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]: ...


class Resized(NamedTuple):
    """What of a sample is the same in every epoch.

    Attributes:
        image: At the size of the model, uint8, shape (H, W, 3).
        native_mask: At its native size (h, w), uint8, or ``None``.
        size: Native size (h, w) of the image.
    """

    image: np.ndarray
    native_mask: np.ndarray | None
    size: tuple[int, int]


class Source(Protocol):
    """Where items get their images from: the data set's files, or a `tw_seg.data.loading.cache.DecodedCache`."""

    def load(self, index: int, /, *, mask: bool) -> Resized: ...


class Files:
    """Reads and resizes a sample each time it is asked for, the mask only if ``mask`` is true."""

    def __init__(self, data: SegmentationData, transform: Transform) -> None:
        self._data, self._transform = data, transform

    def load(self, index: int, *, mask: bool) -> Resized:
        load = getattr(self._data, "load", None)
        sample: Sample = self._data[index] if load is None else load(index, mask=mask)
        height, width = sample.image.shape[:2]
        return Resized(self._transform.resize(sample.image), sample.mask if mask else None, (height, width))


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

    def __init__(self, data: SegmentationData, transform: Transform, source: Source | None = None) -> None:
        self._data, self._transform = data, transform
        self._source = Files(data, transform) if source is None else source

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, draw: Draw) -> Item:
        resized = self._source.load(draw.image, mask=draw.labelled)
        image, mask = _finish(self._transform, resized, draw.key)
        return _item(self._data, draw.image, image, mask, None, resized.size)


class EvalItems(Dataset[Item]):
    """Samples for evaluation: by index, not augmented, with native masks."""

    def __init__(self, data: SegmentationData, transform: Transform, source: Source | None = None) -> None:
        self._data, self._transform = data, transform
        self._source = Files(data, transform) if source is None else source

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Item:
        resized = self._source.load(index, mask=True)
        image, mask = _finish(self._transform, resized, ())
        native = None if resized.native_mask is None else torch.from_numpy(resized.native_mask.astype(np.int64))
        return _item(self._data, index, image, mask, native, resized.size)


def collate(items: Sequence[Item]) -> Batch:
    """Stack items; without any mask, ``masks`` has shape (0, H, W)."""
    images: Tensor = default_collate([item.image for item in items])  # a worker's result begins in shared memory
    labelled = [row for row, item in enumerate(items) if item.mask is not None]
    masks = [item.mask for item in items if item.mask is not None]
    return Batch(
        images=images,
        labels=torch.stack([item.labels for item in items]),
        labelled=torch.tensor(labelled, dtype=torch.int64),
        masks=default_collate(masks) if masks else torch.empty((0, *images.shape[-2:]), dtype=torch.int64),
        native_masks=_pack([item.native_mask for item in items if item.native_mask is not None]),
        names=tuple(item.name for item in items),
        sizes=tuple(item.size for item in items),
    )


def _finish(transform: Transform, resized: Resized, key: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    mask = None if resized.native_mask is None else transform.resize_mask(resized.native_mask)
    return transform.finish(resized.image, mask, key=key)


def _item(
    data: SegmentationData,
    index: int,
    image: Tensor,
    mask: Tensor | None,
    native: Tensor | None,
    size: tuple[int, int],
) -> Item:
    return Item(image, torch.from_numpy(data.labels[index]), mask, native, data.names[index], size)


def _pack(masks: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The masks as parts of one tensor: a worker sends each tensor's memory as a file descriptor of its own."""
    if not masks:
        return ()
    parts = torch.cat([mask.flatten() for mask in masks]).split([mask.numel() for mask in masks])
    return tuple(part.view(mask.shape) for part, mask in zip(parts, masks, strict=True))
