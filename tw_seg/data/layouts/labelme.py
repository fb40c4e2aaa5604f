"""The layout of labelme: a JSON file beside each image."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from tw_seg.data.layouts.annotated import AnnotatedImage, AnnotatedImages, Annotations
from tw_seg.data.layouts.file_names import IMAGE_SUFFIXES, list_files, normalize_name
from tw_seg.data.layouts.shapes import Box, Outline, Shape, Size
from tw_seg.data.layouts.structured import Record, read_json
from tw_seg.errors import DataError

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A polygon or a circle, drawn by Pillow with its outline, as labelme draws it.

    Attributes:
        kind: What it is.
        points: Corners of the polygon, x and y in pixels; of a circle its centre and a point on it.
    """

    kind: Literal["polygon", "circle"]
    points: tuple[Point, ...]

    def fill(self, size: Size) -> np.ndarray:
        """See `tw_seg.data.layouts.shapes.Outline`."""
        height, width = size
        for x, y in self.points:
            if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
                raise DataError(f"the point ({x:g}, {y:g}) is far outside of the image, {height}x{width} pixels")
        image = Image.new("1", (width, height))
        draw = ImageDraw.Draw(image)
        if self.kind == "polygon":
            draw.polygon(self.points, outline=1, fill=1)
        else:
            (x, y), (u, v) = self.points
            radius = float(np.hypot(x - u, y - v))
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
        return np.array(image)


@dataclass(frozen=True, slots=True)
class Pixels:
    """A small mask inside the image.

    Attributes:
        left: Its first column.
        top: Its first row.
        code: A picture in base64.
    """

    left: int
    top: int
    code: str

    def fill(self, size: Size) -> np.ndarray:
        """See `tw_seg.data.layouts.shapes.Outline`."""
        try:
            with Image.open(io.BytesIO(base64.b64decode(self.code, validate=True))) as image:
                small = np.array(image.convert("L")) > 0
        except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
            raise DataError(f"a mask is no picture in base64 ({error}); draw it again") from error
        inside = np.zeros(size, dtype=bool)
        part = inside[max(0, self.top) : self.top + len(small), max(0, self.left) : self.left + small.shape[1]]
        if part.shape != small.shape:
            raise DataError(f"a mask at ({self.left}, {self.top}) reaches beyond the image; draw it again")
        part[...] = small
        return inside


class LabelmeDataset(AnnotatedImages):
    """Images whose objects are polygons, circles, masks or rectangles in a JSON file for each image.

    Layout: a folder of JSON files (``annotations=``, default ``root`` itself), each with the path of its image beside
    it (``imagePath``). Images there without a JSON file are unlabelled. A pixel without a shape is background; later
    shapes lie over earlier ones, and are drawn as labelme draws them. A rectangle is not filled: see
    `tw_seg.data.layouts.shapes.draw_mask`. Flags of an image that are set are image-level labels. All arguments
    are those of `tw_seg.data.layouts.annotated.AnnotatedImages`; ``images`` is not needed, as the files say it.
    """

    default_annotations = "."

    def _read_annotations(self, path: Path, folder: Path) -> Annotations:
        files = list_files(path)
        images = {normalize_name(file.name): file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
        found = [_read_image(file, images) for file in files if file.suffix.lower() == ".json" and file.name[0] != "."]
        taken = {image.files for image in found}
        for file in images.values():
            if file not in taken and not file.name.startswith("."):
                found.append(AnnotatedImage(files=file, source=path, size=None, is_annotated=False))
        return Annotations(tuple(found), None)


def _read_image(path: Path, images: dict[str, Path]) -> AnnotatedImage:
    content = Record(read_json(path), path)
    entry = normalize_name(content.text("imagePath").replace("\\", "/"))
    image = images.get(entry, path.parent / entry)
    sides = (content.whole("imageHeight", None), content.whole("imageWidth", None))
    flags = content.record("flags").value if content.value.get("flags") else {}
    return AnnotatedImage(
        files=image,
        source=path,
        size=None if None in sides else sides,
        shapes=tuple(map(_read_shape, content.records("shapes"))),
        shown=frozenset(name for name, is_set in flags.items() if is_set is True),
    )


def _read_shape(shape: Record) -> Shape:
    kind = shape.text("shape_type", "polygon")
    if kind not in _OUTLINES:
        shape.refuse(f"expected a shape that is one of {', '.join(_OUTLINES)}, found {kind!r}; draw it as one of these")
    points = [shape.numbers(point, "points") for point in shape.entries("points")]
    fits = len(points) >= 3 if kind == "polygon" else len(points) == 2
    if not fits or any(len(point) != 2 for point in points):
        count = "at least 3" if kind == "polygon" else "2"
        shape.refuse(f"expected x and y of {count} points of a {kind}, found {points[:4]}")
    corners = tuple((point[0], point[1]) for point in points)
    return Shape(shape.text("label"), _OUTLINES[kind](shape, corners), is_box=kind == "rectangle")


def _make_mask(shape: Record, points: tuple[Point, ...]) -> Outline:
    return Pixels(round(points[0][0]), round(points[0][1]), shape.text("mask"))


_OUTLINES: dict[str, Callable[[Record, tuple[Point, ...]], Outline]] = {
    "polygon": lambda shape, points: Drawing("polygon", points),
    "circle": lambda shape, points: Drawing("circle", points),
    "rectangle": lambda shape, points: Box(*points[0], *points[1]),
    "mask": _make_mask,
}
