"""The layout of CVAT's XML file of annotations, "CVAT for images 1.1"."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from tw_seg.data.layouts.annotated import AnnotatedImage, AnnotatedImages, Annotations
from tw_seg.data.layouts.shapes import Box, Ellipse, Outline, Polygons, Shape, Size, fill_runs, turn_box
from tw_seg.data.layouts.structured import Record, read_xml
from tw_seg.errors import DataError


@dataclass(frozen=True, slots=True)
class BoxRuns:
    """CVAT's run lengths, row by row, inside a box of whole pixels.

    Attributes:
        counts: Lengths of runs outside and inside in turn.
        left: First column of the box.
        top: Its first row.
        size: Its height and width.
    """

    counts: tuple[int, ...]
    left: int
    top: int
    size: Size

    def fill(self, size: Size) -> np.ndarray:
        """See `tw_seg.data.layouts.shapes.Outline`."""
        bottom, right = self.top + self.size[0], self.left + self.size[1]
        if min(self.left, self.top) < 0 or bottom > size[0] or right > size[1]:
            raise DataError(
                f"a mask from ({self.left}, {self.top}) to ({right}, {bottom}) reaches beyond the image, {size[0]}x"
                f"{size[1]} pixels (height x width); the annotations belong to another image"
            )
        inside = np.zeros(size, dtype=bool)
        inside[self.top : bottom, self.left : right] = fill_runs(self.counts, self.size)
        return inside


class CVATDataset(AnnotatedImages):
    """Images whose objects are polygons, masks, ellipses or boxes in CVAT's XML file.

    Layout: ``annotations.xml`` (``annotations=``), and the images by name below ``images=``. The labels of the task are
    the classes, in its order; a pixel without a shape is background. Shapes are drawn by ``z_order``, and of equals the
    later in the file over the earlier. A ``<box>`` is not filled: see `tw_seg.data.layouts.shapes.draw_mask`; a
    ``<tag>`` is an image-level label. The attribute ``subset`` of an image is its split. All arguments are those of
    `tw_seg.data.layouts.annotated.AnnotatedImages`.
    """

    default_annotations = "annotations.xml"

    @classmethod
    def list_splits(cls, root: str | os.PathLike[str]) -> tuple[str | None, ...]:
        """The subsets that the file names; only ``None``, all images, if it names none."""
        images = read_xml(Path(root) / cls.default_annotations).iterfind("image")
        return tuple(dict.fromkeys(name for image in images if (name := image.get("subset")))) or (None,)

    def _read_annotations(self, path: Path, folder: Path) -> Annotations:
        root = read_xml(path)
        if root.tag != "annotations" or root.find("track") is not None:
            found = "tracks of a video" if root.tag == "annotations" else f"<{root.tag[:40]}>"
            raise DataError(
                f"{path}: expected <annotations> with an <image> for each image, found {found}; export the task as "
                "'CVAT for images 1.1'"
            )
        declared = [name for label in root.iterfind("meta//label") if (name := label.findtext("name", "").strip())]
        images = [_read_image(element, path, number) for number, element in enumerate(root.iterfind("image"))]
        return Annotations(tuple(images), tuple(dict.fromkeys(declared)) or None)


def _read_image(element: Element, path: Path, number: int) -> AnnotatedImage:
    image = Record(dict(element.attrib), path, f"image {number}")
    name = image.text("name")
    shapes: list[tuple[int, Shape]] = []
    shown = []
    for child in element:
        entry = Record(dict(child.attrib), path, f"image {name!r}, <{child.tag}>")
        if child.tag == "tag":
            shown.append(entry.text("label"))
        elif child.tag in _OUTLINES:
            shape = Shape(entry.text("label"), _OUTLINES[child.tag](entry), is_box=child.tag == "box")
            shapes.append((entry.whole("z_order", 0), shape))
        else:
            entry.refuse(f"expected {', '.join(f'<{tag}>' for tag in _OUTLINES)} or <tag>; draw it as one of these")
    return AnnotatedImage(
        files=(name,),
        source=path,
        size=(image.whole("height"), image.whole("width")),
        shapes=tuple(shape for _, shape in sorted(shapes, key=lambda one: one[0])),
        shown=frozenset(shown),
        split=image.text("subset", None),
    )


def _read_polygon(entry: Record) -> Outline:
    points = entry.text("points").replace(";", ",").split(",")
    return Polygons((tuple(entry.check_number(value, "points") for value in points),))


def _read_box(entry: Record) -> Outline:
    left, top, right, bottom = (entry.number(key) for key in ("xtl", "ytl", "xbr", "ybr"))
    if not (angle := entry.number("rotation", 0.0)):
        return Box(left, top, right, bottom)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return turn_box(corners, ((left + right) / 2, (top + bottom) / 2), angle)


def _read_ellipse(entry: Record) -> Outline:
    centre, radii = (entry.number("cx"), entry.number("cy")), (entry.number("rx"), entry.number("ry"))
    return Ellipse(centre, radii, entry.number("rotation", 0.0))


def _read_mask(entry: Record) -> Outline:
    counts = tuple(int(entry.check_number(value, "rle")) for value in entry.text("rle").split(","))
    size = (entry.whole("height"), entry.whole("width"))
    return BoxRuns(counts, entry.whole("left"), entry.whole("top"), size)


_OUTLINES: dict[str, Callable[[Record], Outline]] = {
    "polygon": _read_polygon,
    "mask": _read_mask,
    "ellipse": _read_ellipse,
    "box": _read_box,
}
