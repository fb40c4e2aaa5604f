"""Shapes that people draw on images, and the mask that they make together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

Size = tuple[int, int]
"""Height and width in pixels."""


class Outline(Protocol):
    """Where a shape is."""

    def fill(self, size: Size) -> np.ndarray:
        """Which pixels of an image of this size are inside, bool, shape (H, W)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape with its class.

    Attributes:
        label: Name of the class.
        outline: Where it is.
        is_box: Whether it only bounds an object: a pixel inside may be of the class, one outside of all boxes is not.
        is_ignored: Whether nobody knows what its pixels are, as in a crowd.
    """

    label: str
    outline: Outline
    is_box: bool = False
    is_ignored: bool = False


@dataclass(frozen=True, slots=True)
class Polygons:
    """The union of polygons, drawn as the tools of COCO draw them.

    Attributes:
        rings: For each polygon x and y of each corner in turn, in pixels; (0, 0) is the corner of the first pixel.
    """

    rings: tuple[tuple[float, ...], ...]

    def fill(self, size: Size) -> np.ndarray:
        """See `Outline`."""
        from faster_coco_eval import mask as coco  # here: a tenth of a second that other layouts need not wait

        for ring in self.rings:
            _check_ring(ring, size)
        runs = coco.frPyObjects([list(ring) for ring in self.rings], *size)
        return np.asarray(coco.decode(coco.merge(runs))).astype(bool)


@dataclass(frozen=True, slots=True)
class Runs:
    """COCO's run lengths, column by column, as a list or in COCO's code.

    Attributes:
        counts: Lengths of runs outside and inside in turn.
        size: Height and width of the image.
    """

    counts: tuple[int, ...] | str
    size: Size

    def fill(self, size: Size) -> np.ndarray:
        """See `Outline`."""
        from faster_coco_eval import mask as coco

        check_size(self.size, size, "the run lengths are")
        if not isinstance(self.counts, str):
            return fill_runs(self.counts, (size[1], size[0])).T
        try:
            return np.asarray(coco.decode({"size": list(size), "counts": self.counts})).astype(bool)
        except (ValueError, RuntimeError, UnicodeError) as error:
            raise DataError(f"the run lengths are broken ({error}); export the annotations again") from error


@dataclass(frozen=True, slots=True)
class Box:
    """A box along the sides of the image.

    Attributes:
        left: In pixels; 0 is the left side of the first pixel.
        top: In pixels.
        right: In pixels.
        bottom: In pixels.
    """

    left: float
    top: float
    right: float
    bottom: float

    def fill(self, size: Size) -> np.ndarray:
        """All pixels that it touches; see `Outline`."""
        height, width = size
        _check_point((self.left, self.top), size)
        _check_point((self.right, self.bottom), size)
        inside = np.zeros(size, dtype=bool)
        left, right = sorted((self.left, self.right))
        top, bottom = sorted((self.top, self.bottom))
        columns = slice(max(0, math.floor(left)), min(width, math.ceil(right)))
        inside[max(0, math.floor(top)) : min(height, math.ceil(bottom)), columns] = True
        return inside


@dataclass(frozen=True, slots=True)
class Ellipse:
    """An ellipse; pixels are inside if their centres are.

    Attributes:
        centre: x and y in pixels.
        radii: Half of width and height before it is turned, in pixels.
        angle: Clockwise, in degrees.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    angle: float = 0.0

    def fill(self, size: Size) -> np.ndarray:
        """See `Outline`."""
        _check_point(self.centre, size)
        if min(self.radii) <= 0:
            return np.zeros(size, dtype=bool)
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        y, x = np.ogrid[: size[0], : size[1]]
        dx, dy = x + 0.5 - self.centre[0], y + 0.5 - self.centre[1]
        along, across = cos * dx + sin * dy, cos * dy - sin * dx
        inside: np.ndarray = (along / self.radii[0]) ** 2 + (across / self.radii[1]) ** 2 <= 1
        return inside


def turn_box(corners: Sequence[tuple[float, float]], pivot: tuple[float, float], angle: float) -> Polygons:
    """A box that is turned.

    Args:
        corners: x and y of its four corners before, one after the other.
        pivot: The point that stays.
        angle: Clockwise, in degrees.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = []
    for x, y in corners:
        dx, dy = x - pivot[0], y - pivot[1]
        turned += [pivot[0] + cos * dx - sin * dy, pivot[1] + sin * dx + cos * dy]
    return Polygons((tuple(turned),))


def fill_runs(counts: Sequence[int], size: Size) -> np.ndarray:
    """The pixels of run lengths outside and inside in turn, row by row; bool, shape (H, W).

    Raises:
        DataError: If the lengths do not add up to the pixels.

    Examples:
        >>> fill_runs([1, 2, 3], (2, 3)).astype(int)
        array([[0, 1, 1],
               [0, 0, 0]])
    """
    height, width = size
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise DataError(
            f"the run lengths add up to {sum(counts)} pixels, not to {height}x{width} (height x width), or one is "
            "negative; export the annotations again"
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, np.asarray(counts, dtype=np.int64)).reshape(size)


def check_size(found: Size, size: Size, what: str) -> None:
    """Refuse annotations of an image of another size.

    Args:
        found: Height and width that the annotations speak of.
        size: Those of the image.
        what: Begin of the message, as in ``"the mask has"``.

    Raises:
        DataError: If they differ.
    """
    if found != size:
        swapped = (
            ". The sides are swapped: an image is turned as its EXIF tag 'orientation' says, as every viewer does, and "
            "was annotated as it is stored; turn the annotations or take the tag off the image"
        )
        raise DataError(
            f"{what} for {found[0]}x{found[1]} pixels (height x width), its image has {size[0]}x{size[1]}; they must "
            "be equal, so export the annotations again, or use the images that were annotated"
            + (swapped if found == size[::-1] else "")
        )


def draw_mask(
    shapes: Sequence[tuple[Shape, int]], size: Size, num_classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The mask of an image, and its sets of classes where boxes leave several.

    Shapes are drawn in their order, so later ones lie over earlier ones, but ignored ones only where nothing else is
    drawn. Of boxes only that is taken which is certain: a pixel inside that no shape covers is background or of the
    class of a box around it, and one outside of every shape is background.

    Args:
        shapes: Shapes with their class ids, in the order of drawing.
        size: Height and width of the image.
        num_classes: K.

    Returns:
        The mask, uint8, shape (H, W), with class ids, 255, and ``K + r`` for row ``r`` of the regions; the regions,
        bool, shape (R, K), or ``None`` if there is no such pixel. See `tw_seg.types.Sample`.

    Raises:
        DataError: If a shape does not fit the image, or boxes overlap in too many ways.
    """
    mask = np.zeros(size, dtype=np.uint8)
    drawn = np.zeros(size, dtype=bool)
    boxes: dict[int, np.ndarray] = {}
    ignored = np.zeros(size, dtype=bool)
    for shape, class_id in shapes:
        inside = shape.outline.fill(size)
        if shape.is_ignored or class_id == IGNORE_INDEX:
            ignored |= inside
        elif shape.is_box:
            boxes[class_id] = boxes.get(class_id, False) | inside
        else:
            mask[inside] = class_id
            drawn |= inside
    mask[ignored & ~drawn] = IGNORE_INDEX
    boxes.pop(BACKGROUND, None)
    if not boxes:
        return mask, None
    return _draw_boxes(mask, {k: inside & ~drawn & ~ignored for k, inside in boxes.items()}, num_classes)


def _draw_boxes(
    mask: np.ndarray, boxes: dict[int, np.ndarray], num_classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Give each set of classes that boxes leave a value from ``num_classes`` on."""
    planes = np.stack(list(boxes.values()), axis=-1)
    rows, columns = np.nonzero(planes.any(axis=-1))
    if not len(rows):
        return mask, None
    sets, which = np.unique(planes[rows, columns], axis=0, return_inverse=True)
    if num_classes + len(sets) > IGNORE_INDEX:
        raise DataError(
            f"boxes of {len(boxes)} classes overlap in {len(sets)} ways, and a mask has room for "
            f"{IGNORE_INDEX - num_classes}; leave some classes out, or cut the image into tiles"
        )
    regions = np.zeros((len(sets), num_classes), dtype=bool)
    regions[:, list(boxes)] = sets
    regions[:, BACKGROUND] = True
    mask[rows, columns] = num_classes + which.ravel()
    return mask, regions


def _check_ring(ring: Sequence[float], size: Size) -> None:
    if len(ring) < 6 or len(ring) % 2:
        raise DataError(f"a polygon needs x and y of at least 3 corners, got {len(ring)} numbers; correct or remove it")
    for point in zip(ring[::2], ring[1::2], strict=True):
        _check_point(point, size)


def _check_point(point: tuple[float, float], size: Size) -> None:
    """Refuse a point that lies so far outside that it must belong to another image."""
    height, width = size
    if not (-width <= point[0] <= 2 * width and -height <= point[1] <= 2 * height):
        raise DataError(
            f"the point ({point[0]:g}, {point[1]:g}) is far outside of the image, {height}x{width} pixels (height x "
            "width); the annotations belong to an image of another size"
        )
