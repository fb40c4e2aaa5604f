"""What a user draws on a picture: strokes of a brush, and points, which are strokes of one point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from tw_seg.arguments import is_number
from tw_seg.errors import InputError
from tw_seg.plain_files import parse_json
from tw_seg.types import IGNORE_INDEX


class Stroke(NamedTuple):
    """A line that was drawn with a round brush; a point if it has only one.

    Attributes:
        label: Class id of what is there, or 255: nothing is known there after all.
        radius: Of the brush, as a share of the picture's longer side.
        points: Where the brush was, each (x, y) as shares of the width and the height.
    """

    label: int
    radius: float
    points: tuple[tuple[float, float], ...]


def read_strokes(text: str | None, num_classes: int) -> list[Stroke]:
    """Strokes of the JSON that the page sends: a list of ``{"label": 1, "radius": 0.01, "points": [[0.5, 0.5]]}``.

    Raises:
        InputError: It is no such JSON, or names a class that is not there.

    Example:
        >>> read_strokes('[{"label": 1, "radius": 0.1, "points": [[0.5, 0.25]]}]', 2)
        [Stroke(label=1, radius=0.1, points=((0.5, 0.25),))]
    """
    try:
        return [_read_stroke(one, num_classes) for one in parse_json(text or "[]")]
    except (ValueError, KeyError, TypeError) as error:  # InputError is a ValueError
        raise InputError(f"the marks cannot be read ({error}): clear them and draw them again") from error


def draw_strokes(strokes: Sequence[Stroke], size: tuple[int, int]) -> np.ndarray:
    """The mask of strokes: their classes, a later one over an earlier one, and 255 elsewhere.

    However small the picture, every stroke has a pixel.

    Args:
        strokes: The strokes.
        size: Height and width.

    Returns:
        uint8, shape ``size``.

    Example:
        >>> draw_strokes([Stroke(1, 0.0, ((0.0, 0.5), (0.5, 0.5)))], (1, 5))
        array([[  1,   1,   1, 255, 255]], dtype=uint8)
    """
    height, width = size
    mask = np.full(size, IGNORE_INDEX, dtype=np.uint8)
    for stroke in strokes:
        places = [(min(int(x * width), width - 1), min(int(y * height), height - 1)) for x, y in stroke.points]
        outside = np.ones(size, dtype=np.uint8)
        cv2.polylines(outside, [np.array([*places, places[-1]], dtype=np.int32)], False, 0)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        mask[distance <= stroke.radius * max(size)] = stroke.label
    return mask


def _read_stroke(given: Any, num_classes: int) -> Stroke:
    label, radius = given["label"], given["radius"]
    if label not in (*range(num_classes), IGNORE_INDEX):
        raise ValueError(f"there is no class {label!r}")
    points = tuple((x, y) for x, y in given["points"])
    if not points or not all(is_number(value) and 0 <= value <= 1 for point in points for value in point):
        raise ValueError("a point lies outside of the picture")
    if not is_number(radius) or not 0 <= radius <= 1:
        raise ValueError(f"a brush of radius {radius!r}")
    return Stroke(int(label), float(radius), points)
