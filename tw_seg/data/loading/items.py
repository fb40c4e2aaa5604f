"""From samples to tensors: load, transform. A mask is read only where a batch may show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tw_seg.data.dataset import SegmentationData
from tw_seg.data.loading.sampler import Draw
from tw_seg.errors import DataError, InputError
from tw_seg.regions import check_regions, ignore_uncertain
from tw_seg.types import BACKGROUND, IGNORE_INDEX, Sample, Window


class Transform(Protocol):
    """What turns an image and a mask into tensors, in two parts; see `tw_seg.data.loading.transforms`."""

    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]

    def resize(self, image: np.ndarray) -> np.ndarray: ...

    def resize_mask(self, mask: np.ndarray) -> np.ndarray: ...

    def finish(
        self, image: np.ndarray, mask: np.ndarray | None, *, key: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]: ...


class Resized(NamedTuple):
    """What of a sample is the same in every epoch.

    Attributes:
        image: At the size of the model, uint8 or float32 from 0 to 1, shape (H, W, C).
        native_mask: At its native size (h, w), uint8, or ``None``.
        size: Native size (h, w) of the image.
        regions: The mask's sets of classes, see `Sample`.
    """

    image: np.ndarray
    native_mask: np.ndarray | None
    size: tuple[int, int]
    regions: np.ndarray | None = None


class ImageSource(Protocol):
    """Where items get their images from: the data set's files, or a `tw_seg.data.loading.cache.DecodedCache`."""

    def load(self, index: int, /, *, mask: bool) -> Resized: ...


class FileSource:
    """Reads and resizes a sample each time it is asked for, the mask only if ``mask`` is true."""

    def __init__(self, data: SegmentationData, transform: Transform) -> None:
        self._data, self._transform = data, transform

    def load(self, index: int, *, mask: bool) -> Resized:
        load = getattr(self._data, "load", None)
        sample: Sample = self._data[index] if load is None else load(index, mask=mask)
        height, width = sample.image.shape[:2]
        try:
            image = self._transform.resize(sample.image)
        except InputError as error:
            raise DataError(f"{sample.name}: {error}") from error
        if not mask or sample.mask is None:
            return Resized(image, None, (height, width))
        check_regions(sample.mask, sample.regions, len(self._data.classes), name=sample.name)
        return Resized(image, sample.mask, (height, width), sample.regions)


class Item(NamedTuple):
    """One transformed sample, or a window of one; see `Batch` for shapes and units."""

    image: Tensor
    labels: Tensor
    mask: Tensor | None
    native_mask: Tensor | None
    name: str
    size: tuple[int, int]
    annotated: Tensor | None = None
    regions: Tensor | None = None
    window: Window | None = None
    thumbnail: np.ndarray | None = None


class _Items(Dataset[Item]):
    """A data set's samples, transformed.

    Args:
        data: The data set.
        transform: Makes tensors of images and masks.
        source: Gives images and masks; the data set's files if ``None``.
        annotated: Which classes count as annotated in each image's mask, bool, shape (N, K), the background among them;
            pixels of the others become background. ``None``: all.
    """

    def __init__(
        self,
        data: SegmentationData,
        transform: Transform,
        source: ImageSource | None = None,
        *,
        annotated: np.ndarray | None = None,
    ) -> None:
        self._data, self._transform = data, transform
        self._source = FileSource(data, transform) if source is None else source
        self._annotated = annotated

    def __len__(self) -> int:
        return len(self._data)

    def _load(self, index: int, *, mask: bool) -> Resized:
        """The image and its mask, without classes that were not annotated."""
        resized = self._source.load(index, mask=mask)
        if self._annotated is None or resized.native_mask is None:
            return resized
        annotated = self._annotated[index]
        hidden = hide_classes(resized.native_mask, annotated)
        regions = None if resized.regions is None else hide_in_regions(resized.regions, annotated)
        return resized._replace(native_mask=hidden, regions=regions)

    def _make_item(self, index: int, resized: Resized, key: Sequence[int]) -> Item:
        mask = None if resized.native_mask is None else self._transform.resize_mask(resized.native_mask)
        tensors = self._transform.finish(resized.image, mask, key=key)
        labels = torch.from_numpy(self._data.labels[index])
        regions = None if resized.regions is None else torch.from_numpy(resized.regions)
        shown = self._annotated is not None and mask is not None
        annotated = torch.from_numpy(self._annotated[index]) if shown else None  # type: ignore[index]
        return Item(tensors[0], labels, tensors[1], None, self._data.names[index], resized.size, annotated, regions)


class TrainItems(_Items):
    """Samples for training: asked for by a `Draw`, augmented, without native masks."""

    def __getitem__(self, draw: Draw) -> Item:
        return self._make_item(draw.image, self._load(draw.image, mask=draw.labelled), draw.key)


def hide_classes(mask: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """A mask as someone draws it who was asked for some classes only: pixels of others are background.

    Args:
        mask: Class ids, values of regions and 255, uint8, shape (H, W).
        annotated: Which classes were asked for, bool, shape (K,).

    Examples:
        >>> hide_classes(np.array([[1, 2, 255]], dtype=np.uint8), np.array([True, True, False]))
        array([[  1,   0, 255]], dtype=uint8)
    """
    table = np.arange(IGNORE_INDEX + 1, dtype=np.uint8)
    table[: len(annotated)][~annotated] = BACKGROUND
    return table[mask]


def hide_in_regions(regions: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """The sets of classes of a mask that `hide_classes` made: the background stands for classes that are hidden.

    Args:
        regions: Bool, shape (R, K).
        annotated: Which classes were asked for, bool, shape (K,).

    Examples:
        >>> hide_in_regions(np.array([[False, True, True]]), np.array([True, True, False]))
        array([[ True,  True, False]])
    """
    shown = regions & annotated
    shown[:, BACKGROUND] |= (regions & ~annotated).any(axis=1)
    return shown


class EvalItems(_Items):
    """Samples for evaluation: by index, not augmented, with native masks of the pixels whose one class is known."""

    def __getitem__(self, index: int) -> Item:
        resized = self._load(index, mask=True)
        item = self._make_item(index, resized, ())
        if resized.native_mask is None:
            return item
        native = torch.from_numpy(resized.native_mask.astype(np.int64))
        return item._replace(native_mask=ignore_uncertain(native, item.labels, item.annotated))
