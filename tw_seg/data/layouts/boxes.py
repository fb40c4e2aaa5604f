"""Boxes around objects, in a table.

A box says that its object is somewhere inside and nowhere outside. All objects of an image are boxed, or all of the
classes that were annotated in it. So a pixel outside of all boxes is background, and one inside belongs to the
background or to one of the classes of the boxes around it. `tw_seg.data.layouts.shapes.draw_mask` draws them so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tw_seg.data.layouts.readers import read_annotations
from tw_seg.data.layouts.shapes import Box, Size
from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND


def read_boxes(path: Path, classes: Sequence[str]) -> dict[str, list[tuple[Box, int]]]:
    """Read ``boxes.csv``: the columns ``image``, ``class``, ``x_min``, ``y_min``, ``x_max`` and ``y_max``.

    Edges are pixels of the image as viewers show it: 0 is its left or upper edge, its width or height the other one.

    Args:
        path: The file.
        classes: Class names, the background first.

    Returns:
        The boxes of each image with their class ids, by its name as the table writes it.

    Raises:
        DataError: If the file is missing or no such table, or a row has no class of an object, or no box with an area.
    """
    found: dict[str, list[tuple[Box, int]]] = {}
    rows = read_annotations(path, classes[BACKGROUND + 1 :], ("x_min", "y_min", "x_max", "y_max"))
    for image, drawn in rows.items():
        boxes = [(Box(*edges), label + BACKGROUND + 1) for label, edges in drawn]
        for box, _ in boxes:
            edges = (box.left, box.top, box.right, box.bottom)
            if not (all(map(math.isfinite, edges)) and box.left < box.right and box.top < box.bottom):
                raise DataError(
                    f"{path}: image {image!r}: the box {_describe(box)} has no area; x_min must be below x_max, and "
                    "y_min below y_max"
                )
        found[image] = boxes
    return found


def check_boxes(boxes: Sequence[Box], size: Size) -> None:
    """Refuse boxes that lie outside of an image: they are of another one, or not in pixels.

    Raises:
        DataError: Names the first.
    """
    height, width = size
    for box in boxes:
        if box.right <= 0 or box.bottom <= 0 or box.left >= width or box.top >= height:
            raise DataError(
                f"the box {_describe(box)} lies outside of the image of {height}x{width} pixels (height x width); its "
                "edges are pixels of the image as viewers show it, turned by its EXIF tag"
            )


def _describe(box: Box) -> str:
    return f"from ({box.left:g}, {box.top:g}) to ({box.right:g}, {box.bottom:g})"
