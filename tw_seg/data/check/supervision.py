"""What a data set tells of its images: kinds of supervision, and how often each class is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tw_seg.data.check.scan import ImageFacts
from tw_seg.data.dataset import SegmentationData
from tw_seg.types import BACKGROUND, IGNORE_INDEX

KINDS = {
    "full": "a mask that gives every pixel a class",
    "most": "a mask that gives at least half of the pixels a class",
    "few": "a mask that gives fewer pixels a class: scribbles, points",
    "sets": "a mask in which sets of classes are known of some pixels: boxes",
    "some_classes": "a mask of some classes only",
    "labels": "image-level labels only",
    "nothing": "neither a mask nor a label",
}
"""Kinds of supervision: an image has one."""


@dataclass(frozen=True)
class ClassCount:
    """How often a class is shown in a split.

    Attributes:
        positive: Images whose labels name it.
        unknown: Images whose labels say nothing of it.
        masks: Masks that have a pixel of it.
        share: Its share of all pixels that have a class; 0 without any.
    """

    positive: int
    unknown: int
    masks: int
    share: float


@dataclass(frozen=True)
class SplitCount:
    """What a split holds.

    Attributes:
        images: Images that can be read.
        masks: How many of them have a mask that can be read.
        supervision: How many images there are of each of `KINDS`; those without any are left out.
        classes: The counts of each class, the background included.
        sizes: The smallest and the largest image, by pixels: height and width.
    """

    images: int
    masks: int
    supervision: dict[str, int]
    classes: dict[str, ClassCount]
    sizes: tuple[tuple[int, int], tuple[int, int]]


def count_split(facts: Sequence[ImageFacts], data: SegmentationData) -> SplitCount:
    """Count what a split holds.

    Args:
        facts: Its images that can be read; at least one.
        data: The data set.
    """
    rows = [fact.index for fact in facts]
    labels = data.labels[rows]
    pixels = np.array([np.zeros(256, dtype=np.int64) if fact.pixels is None else fact.pixels for fact in facts])
    held = pixels[:, : len(data.classes)]
    labelled = held.sum()
    classes = {
        name: ClassCount(
            positive=int((labels[:, k] > 0).sum()),
            unknown=int(np.isnan(labels[:, k]).sum()),
            masks=int((held[:, k] > 0).sum()),
            share=float(held[:, k].sum() / labelled) if labelled else 0.0,
        )
        for k, name in enumerate(data.classes)
    }
    counts = Counter(find_kind(fact, data) for fact in facts)
    sizes = sorted((fact.size for fact in facts), key=lambda size: (size[0] * size[1], size))
    return SplitCount(
        images=len(facts),
        masks=sum(fact.pixels is not None for fact in facts),
        supervision={kind: counts[kind] for kind in KINDS if counts[kind]},
        classes=classes,
        sizes=(sizes[0], sizes[-1]),
    )


def find_kind(fact: ImageFacts, data: SegmentationData) -> str:
    """The one of `KINDS` that an image has."""
    labels = data.labels[fact.index][BACKGROUND + 1 :]
    if fact.pixels is None:
        return "nothing" if np.isnan(labels).all() else "labels"
    annotated: np.ndarray | None = getattr(data, "annotated", None)
    if annotated is not None and not annotated[fact.index][BACKGROUND + 1 :].all():
        return "some_classes"
    known = fact.pixels[: len(data.classes)].sum()
    total = fact.pixels.sum()
    if total - known - fact.pixels[IGNORE_INDEX]:
        return "sets"
    return "full" if known == total else "most" if 2 * known >= total else "few"


def measure_channels(facts: Sequence[ImageFacts]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels, of values in [0, 1]; every image weighs the same.

    Args:
        facts: Images of the same number of channels; at least one.
    """
    mean = np.mean([fact.mean for fact in facts], axis=0)
    square = np.mean([fact.std**2 + fact.mean**2 for fact in facts], axis=0)
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()


def find_images(facts: Sequence[ImageFacts], splits: Mapping[str, SegmentationData]) -> dict[str, list[ImageFacts]]:
    """The images of each split, in the order of the splits."""
    found: dict[str, list[ImageFacts]] = {split: [] for split in splits}
    for fact in facts:
        found[fact.split].append(fact)
    return found
