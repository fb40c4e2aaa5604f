"""What a model sees of pictures that are predicted: the whole, stretched or with margins, or overlapping tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import IterableDataset, get_worker_info

from tw_seg.arguments import image_size, is_number
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.loading.items import Item
from tw_seg.data.loading.transforms import EvalTransform, resize_image
from tw_seg.errors import DataError, InputError
from tw_seg.pictures import draw_pixels
from tw_seg.types import Failure, Sample, Window

THUMBNAIL_SIDE = 1024
"""Largest height and width of the pictures in small."""


class View(Protocol):
    """How a picture is shown to a model: in one window, or in several from top to bottom."""

    @property
    def is_whole(self) -> bool:
        """Whether one window shows the whole picture."""

    def plan(self, size: tuple[int, int], /) -> list[Window]:
        """The windows of a picture of a size (h, w), ordered by their first rows; the last one says that it is."""


@dataclass(frozen=True)
class Stretched:
    """The whole picture, resized to the size of the model's images; its aspect ratio is not kept.

    Args:
        size: Height and width of the model's images.
    """

    size: tuple[int, int]
    is_whole = True

    def plan(self, size: tuple[int, int]) -> list[Window]:
        return [Window(0, 0, *size, fit=self.size, last=True)]


@dataclass(frozen=True)
class Letterbox:
    """The whole picture, as large as fits into the model's images with its aspect ratio, with margins below or right.

    Args:
        size: Height and width of the model's images.
    """

    size: tuple[int, int]
    is_whole = True

    def plan(self, size: tuple[int, int]) -> list[Window]:
        scale = min(self.size[0] / size[0], self.size[1] / size[1])
        height, width = (max(1, min(full, round(side * scale))) for side, full in zip(size, self.size, strict=True))
        return [Window(0, 0, *size, fit=(height, width), last=True)]


@dataclass(frozen=True)
class Tiles:
    """Tiles that overlap and cover the picture; the last of a row and of a column end where the picture ends.

    Args:
        size: Height and width of the model's images, to which tiles are resized.
        tile: Height and width of a tile in pixels of the picture.
        overlap: Smallest share of a tile's side that it shares with the next one, 0 to below 1.

    Raises:
        InputError: For a tile without a pixel or an overlap out of range.

    Examples:
        >>> [(window.top, window.left) for window in Tiles((64, 64), (64, 64), 0.25).plan((64, 150))]
        [(0, 0), (0, 43), (0, 86)]
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    overlap: float = 0.25
    is_whole = False

    def __post_init__(self) -> None:
        image_size(self.tile)
        if not is_number(self.overlap) or not 0 <= self.overlap < 1:
            raise InputError(f"overlap must be a share of a tile's side, from 0 to below 1, got {self.overlap!r}")

    def plan(self, size: tuple[int, int]) -> list[Window]:
        sides = [min(tile, full) for tile, full in zip(self.tile, size, strict=True)]
        fit = [
            model if side == tile else max(1, round(model * side / tile))
            for model, side, tile in zip(self.size, sides, self.tile, strict=True)
        ]
        starts = [self._spread(full, side) for full, side in zip(size, sides, strict=True)]
        windows = [
            Window(top, left, sides[0], sides[1], fit=(fit[0], fit[1]), last=False)
            for top in starts[0]
            for left in starts[1]
        ]
        return [*windows[:-1], windows[-1]._replace(last=True)]

    def _spread(self, full: int, side: int) -> list[int]:
        """Where tiles begin along one side: as few as overlap enough, evenly spaced."""
        step = max(1, math.floor(side * (1 - self.overlap)))
        count = 1 + math.ceil((full - side) / step)
        return [round(index * (full - side) / max(1, count - 1)) for index in range(count)]


VIEWS = ("resize", "letterbox", "tiles")
"""Names of the views."""


def make_view(name: str, size: tuple[int, int], *, tile: int | None = None, overlap: float = 0.25) -> View:
    """The view of a name in `VIEWS`.

    Args:
        name: The name.
        size: Height and width of the model's images.
        tile: Height and width of a tile in pixels of the picture; ``None``: those of the model's images.
        overlap: See `Tiles`.

    Raises:
        InputError: For an unknown name, a tile without tiles, or numbers that do not fit.
    """
    if name not in VIEWS:
        raise InputError(f"view must be one of {', '.join(VIEWS)}, got {name!r}")
    if name == "tiles":
        return Tiles(size, size if tile is None else image_size(tile), overlap)
    if tile is not None:
        raise InputError(f"tile={tile} needs the view tiles, got {name!r}")
    return Stretched(size) if name == "resize" else Letterbox(size)


class WindowItems(IterableDataset[Item | Failure]):
    """The windows of a data set's pictures, one picture after the other; a picture that cannot be read is a `Failure`.

    Args:
        data: The data set; no mask is read.
        transform: Gives size and normalisation.
        view: What is shown of a picture.
        batch_size: Windows in a batch: workers take pictures in turns so that batches are the same for any number.
        thumbnails: Whether each picture comes in small too, beside its last window.
    """

    def __init__(
        self,
        data: SegmentationData,
        transform: EvalTransform,
        view: View,
        *,
        batch_size: int,
        thumbnails: bool = False,
    ) -> None:
        self._data, self._transform, self._view = data, transform, view
        self._turn = batch_size if view.is_whole else 1
        self._thumbnails = thumbnails

    def __iter__(self) -> Iterator[Item | Failure]:
        worker = get_worker_info()
        for index in range(len(self._data)):
            if worker is None or index // self._turn % worker.num_workers == worker.id:
                yield from self._cut(index)

    def _cut(self, index: int) -> Iterator[Item | Failure]:
        """The windows of one picture; errors come before the first of them."""
        name, labels = self._data.names[index], torch.from_numpy(self._data.labels[index])
        load = getattr(self._data, "load", None)
        try:
            sample: Sample = self._data[index] if load is None else load(index, mask=False)
            size = (sample.image.shape[0], sample.image.shape[1])
            windows = self._view.plan(size)
            first = cut_window(sample.image, windows[0], self._transform)
        except DataError as error:
            yield Failure(name, str(error))
            return
        except InputError as error:  # of OpenCV
            yield Failure(name, f"{name}: {error} (tw-seg predict --view tiles)")
            return
        for window in windows:
            image = first if window is windows[0] else cut_window(sample.image, window, self._transform)
            small = draw_pixels(shrink(sample.image)) if window.last and self._thumbnails else None
            yield Item(image, labels, None, None, name, size, window=window, thumbnail=small)


def cut_window(picture: np.ndarray, window: Window, transform: EvalTransform) -> torch.Tensor:
    """What a model sees of a window, float32, (C, H, W): margins are 0, the mean of normalised images.

    Args:
        picture: uint8, (h, w, C); only the window is read of a memory map.
        window: Which part is shown.
        transform: Gives size and normalisation.

    Raises:
        InputError: OpenCV cannot resize the part.
    """
    rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
    part = np.ascontiguousarray(picture[rows, columns])
    image, _ = transform.finish(resize_image(transform.check(part), window.fit), None)
    height, width = (full - side for full, side in zip(transform.size, window.fit, strict=True))
    return F.pad(image, (0, width, 0, height)) if height or width else image


def shrink(picture: np.ndarray) -> np.ndarray:
    """Every n-th pixel of a picture (h, w, C), with the smallest n that leaves `THUMBNAIL_SIDE` pixels a side."""
    step = math.ceil(max(picture.shape[:2]) / THUMBNAIL_SIDE)
    return np.array(picture[::step, ::step])
