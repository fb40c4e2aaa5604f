"""What writers of annotations have in common: an image with its mask, and the objects in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from tw_seg.errors import InputError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

IGNORE_NAME = "ignore"
"""The class of ignored pixels in files that have no other word for them; the layouts read it as 255."""


class MaskedImage(NamedTuple):
    """An image to be written.

    Attributes:
        file: Path of its file below the folder of images, with ``/``.
        mask: Integer label image, uint8, shape (H, W), with class ids and 255.
    """

    file: str
    mask: np.ndarray


class Export(Protocol):
    """Writes masks for an annotation tool."""

    def __call__(
        self, path: Path, images: Iterable[MaskedImage], classes: Sequence[str], *, predicted: bool = False
    ) -> int:
        """Write a file, whole or not at all.

        Args:
            path: The file.
            images: The images, each used once.
            classes: The class names, the background first.
            predicted: Whether a model made the masks.

        Returns:
            How many images were written.
        """


class DrawnObject(NamedTuple):
    """Pixels of one class that touch each other.

    Attributes:
        label: Name of the class.
        left: First column.
        top: First row.
        inside: Which pixels of the box around it, bool, shape (h, w).
    """

    label: str
    left: int
    top: int
    inside: np.ndarray


def list_classes(mask: np.ndarray, classes: Sequence[str]) -> list[tuple[int, str]]:
    """The values that a mask has beside the background, with the names of their classes.

    Args:
        mask: As in `MaskedImage`.
        classes: The class names.

    Raises:
        InputError: The mask has a value that is no class.

    Examples:
        >>> list_classes(np.array([[0, 2, 255]], dtype=np.uint8), ["background", "cat", "dog"])
        [(2, 'dog'), (255, 'ignore')]
    """
    values = [value for value in np.unique(mask).tolist() if value != BACKGROUND]
    wrong = [value for value in values if value >= len(classes) and value != IGNORE_INDEX]
    if wrong:
        raise InputError(f"a mask has the value {wrong[0]}, but there are only {len(classes)} classes: name them all")
    return [(value, IGNORE_NAME if value == IGNORE_INDEX else classes[value]) for value in values]


def list_objects(mask: np.ndarray, classes: Sequence[str]) -> Iterator[DrawnObject]:
    """The objects of a mask: connected pixels of one class, by corners too, and the ignored pixels likewise.

    Args:
        mask: As in `MaskedImage`.
        classes: The class names.

    Raises:
        InputError: The mask has a value that is no class.
    """
    for class_id, name in list_classes(mask, classes):
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats((mask == class_id).astype(np.uint8), connectivity=8)
        for number in range(1, count):
            left, top, width, height = boxes[number, :4].tolist()
            inside = numbers[top : top + height, left : left + width] == number
            yield DrawnObject(name, left, top, inside)


def count_runs(places: np.ndarray, total: int) -> list[int]:
    """Lengths of runs outside and inside in turn.

    Args:
        places: Which of ``total`` pixels are inside, rising, at least one.
        total: Number of pixels.

    Examples:
        >>> count_runs(np.array([1, 2, 5]), 6)
        [1, 2, 2, 1]
    """
    breaks = np.flatnonzero(np.diff(places) > 1)
    ends = np.empty(2 * len(breaks) + 4, dtype=np.int64)
    ends[0], ends[1], ends[-2], ends[-1] = 0, places[0], places[-1] + 1, total
    ends[2:-2:2], ends[3:-2:2] = places[breaks] + 1, places[breaks + 1]
    counts: list[int] = np.diff(ends).tolist()
    return counts if counts[-1] else counts[:-1]
