"""Points on objects, as masks: discs around them, and nothing is known of all other pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tw_seg.data.layouts.readers import read_annotations
from tw_seg.data.layouts.shapes import Size
from tw_seg.errors import DataError
from tw_seg.types import IGNORE_INDEX


class Point(NamedTuple):
    """A point of an image as viewers show it.

    Attributes:
        label: Class id of what is there; the background's too.
        x: Pixels from the left edge.
        y: Pixels from the upper edge.
    """

    label: int
    x: float
    y: float


def read_points(path: Path, classes: Sequence[str]) -> dict[str, list[Point]]:
    """Read ``points.csv``: the columns ``image``, ``class`` (the background too), ``x`` and ``y``.

    Args:
        path: The file.
        classes: Class names, the background first.

    Returns:
        The points of each image, by its name as the table writes it.

    Raises:
        DataError: If the file is missing or no such table, or a cell is no class or no number.
    """
    rows = read_annotations(path, classes, ("x", "y"))
    return {image: [Point(label, *numbers) for label, numbers in found] for image, found in rows.items()}


def draw_points(points: Sequence[Point], size: Size, radius: float) -> np.ndarray:
    """The mask of an image with points: each is a disc of its class.

    A disc has the pixel of its point and those whose centres are at most ``radius`` away from the centre of that one.
    Where discs of several points overlap, the nearest point counts, the first of those equally near.

    Args:
        points: The points.
        size: Height and width of the image.
        radius: Radius of the discs in pixels.

    Returns:
        Mask, uint8, shape ``size``, 255 outside of the discs.

    Raises:
        DataError: A point lies outside of the image.

    Examples:
        >>> draw_points([Point(1, 0.5, 0), Point(0, 3, 0)], (1, 6), 1)
        array([[  1,   1,   0,   0,   0, 255]], dtype=uint8)
    """
    height, width = size
    mask = np.full(size, IGNORE_INDEX, dtype=np.uint8)
    nearest = np.full(size, np.inf, dtype=np.float32)
    reach = math.floor(radius)
    for point in points:
        if not (0 <= point.x < width and 0 <= point.y < height):
            raise DataError(
                f"the point ({point.x:g}, {point.y:g}) lies outside of the image of {height}x{width} pixels (height x "
                "width); x and y are pixels of the image as viewers show it, turned by its EXIF tag"
            )
        row, column = math.floor(point.y), math.floor(point.x)
        rows = slice(max(0, row - reach), row + reach + 1)
        columns = slice(max(0, column - reach), column + reach + 1)
        y, x = np.ogrid[rows.start : min(height, rows.stop), columns.start : min(width, columns.stop)]
        distance = (y - row) ** 2 + (x - column) ** 2
        inside = (distance <= radius**2) & (distance < nearest[rows, columns])
        mask[rows, columns][inside] = point.label
        nearest[rows, columns][inside] = distance[inside]
    return mask
