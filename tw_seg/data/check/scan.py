"""One pass over the images and masks of a data set: a few numbers of each, and what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import cv2
import numpy as np

from tw_seg.data.check.findings import Finding
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.grouping.near_duplicates import hash_image
from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.errors import DataError, MaskIdError, MaskSizeError
from tw_seg.types import Sample

_CHUNK = 256  # images whose results may wait

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ImageFacts:
    """What is kept of an image.

    Attributes:
        split: Its split.
        index: Its place in the data set of the split.
        name: Its name.
        size: Height and width in pixels.
        channels: Number of channels; 1 if all are the same.
        mean: Per channel, of values in [0, 1] (integers by their largest value).
        std: The same.
        pixels: How many pixels of its mask have each value, int64, shape (256,), those of sets of classes included
            (see `tw_seg.types.Sample`); ``None`` without a mask.
        turned: Whether the image has a mask and an EXIF tag turns it at the same size, so that sizes do not tell
            whether the mask is turned too.
        hashes: Perceptual hashes, see `tw_seg.data.grouping.near_duplicates`.
    """

    split: str
    index: int
    name: str
    size: tuple[int, int]
    channels: int
    mean: np.ndarray
    std: np.ndarray
    pixels: np.ndarray | None
    turned: bool
    hashes: np.ndarray


class Track(Protocol):
    """Passes things on one after the other, and may show how many of them were passed."""

    def __call__(self, items: Iterator[_Item], total: int) -> Iterable[_Item]: ...


def track_nothing(items: Iterator[_Item], total: int) -> Iterable[_Item]:
    """A `Track` that shows nothing."""
    return items


def scan_images(
    splits: Mapping[str, SegmentationData], track: Track = track_nothing
) -> tuple[list[ImageFacts], list[Finding]]:
    """Read every image and mask once.

    Args:
        splits: Data sets by the names of the splits.
        track: Sees each image pass.

    Returns:
        The images that can be read, in order, and a finding for each image or mask that cannot. Of an image whose mask
        cannot be read the facts are those of an image without one.
    """
    places = [(split, data, index) for split, data in splits.items() for index in range(len(data))]
    facts: list[ImageFacts] = []
    findings: list[Finding] = []
    for found, finding in track(_work(_examine, places), len(places)):
        if found is not None:
            facts.append(found)
        if finding is not None:
            findings.append(finding)
    return facts, findings


def hash_images(data: SegmentationData, rows: Sequence[int], track: Track = track_nothing) -> np.ndarray:
    """The perceptual hashes of some images, see `tw_seg.data.grouping.near_duplicates`; shape (rows, 8, 3).

    Raises:
        DataError: If one cannot be read.
    """
    hashes = [*track(_work(lambda row: hash_image(load_sample(data, row, mask=False).image), rows), len(rows))]
    return np.stack(hashes) if hashes else np.empty((0, 8, 3), dtype=np.uint64)


def _work(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Results in order, from a thread for each processor; few wait at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), _CHUNK):
            yield from pool.map(function, items[start : start + _CHUNK])


def _examine(place: tuple[str, SegmentationData, int]) -> tuple[ImageFacts | None, Finding | None]:
    split, data, index = place
    name = (split, data.names[index])
    try:
        return _describe(split, index, load_sample(data, index, mask=True), data), None
    except DataError as error:
        problem = error
    try:
        sample = load_sample(data, index, mask=False)
    except DataError as error:
        return None, Finding("image", str(error), (name,))
    kind = "size" if isinstance(problem, MaskSizeError) else "id" if isinstance(problem, MaskIdError) else "mask"
    return _describe(split, index, sample._replace(mask=None), data), Finding(kind, str(problem), (name,))


def load_sample(data: SegmentationData, index: int, *, mask: bool) -> Sample:
    """A sample; its mask is not read unless ``mask`` is true, if the data set can do without."""
    load = getattr(data, "load", None)
    sample: Sample = data[index] if load is None else load(index, mask=mask)
    return sample


def _describe(split: str, index: int, sample: Sample, data: SegmentationData) -> ImageFacts:
    image = sample.image
    scale = float(np.iinfo(image.dtype).max) if np.issubdtype(image.dtype, np.integer) else 1.0
    channels = range(image.shape[2])
    moments = np.array([cv2.meanStdDev(np.ascontiguousarray(image[..., channel])) for channel in channels])
    mean, std = moments.reshape(len(channels), 2).T / scale
    grey = all(np.array_equal(image[..., 0], image[..., channel]) for channel in channels)
    return ImageFacts(
        split,
        index,
        sample.name,
        size=(image.shape[0], image.shape[1]),
        channels=1 if grey else image.shape[2],
        mean=mean,
        std=std,
        pixels=None if sample.mask is None else np.bincount(sample.mask.ravel(), minlength=256),
        turned=sample.mask is not None and isinstance(data, ImageFiles) and data.is_turned(index),
        hashes=hash_image(image),
    )
