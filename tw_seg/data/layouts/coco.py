"""The layout of COCO: one JSON file of images, categories and annotations."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from tw_seg.data.layouts.annotated import AnnotatedImage, AnnotatedImages, Annotations
from tw_seg.data.layouts.shapes import Box, Polygons, Runs, Shape
from tw_seg.data.layouts.structured import Record, read_json
from tw_seg.errors import DataError

_MOST_PIXELS = 10**9  # that an image has; a size that a file only claims must not fill the memory


class COCODataset(AnnotatedImages):
    """Images whose objects are polygons, run lengths or boxes in COCO's JSON file, and no more than these.

    Layout: ``annotations/instances_SPLIT.json`` (``annotations=``), and the images at ``file_name`` below ``images=``.
    Categories are the classes, in the order of their ids; a pixel without an object is background. Where objects
    overlap, a smaller one (by its ``area``) lies over a larger one, and of equals the later in the file. Crowds
    (``iscrowd``) are 255 where no object is. An annotation without ``segmentation`` is a box: see
    `tw_seg.data.layouts.shapes.draw_mask`. All arguments are those of
    `tw_seg.data.layouts.annotated.AnnotatedImages`.
    """

    default_annotations = "annotations/instances_{split}.json"

    def _read_annotations(self, path: Path, folder: Path) -> Annotations:
        content = Record(read_json(path), path)
        names: dict[int, str] = {}
        for category in content.records("categories"):
            number = category.whole("id")
            if number in names or category.text("name") in names.values():
                category.refuse(f"the category {category.text('name')!r} ({number}) is listed twice; remove one entry")
            names[number] = category.text("name")
        shapes: dict[int, list[tuple[float, Shape]]] = defaultdict(list)
        for entry in content.records("annotations", []):
            if (number := entry.whole("category_id")) not in names:
                entry.refuse(f"the category {number} is not in the file's list; add it to 'categories'")
            shape, area = _read_shape(entry, names[number])
            shapes[entry.whole("image_id")].append((area, shape))
        images: dict[int, AnnotatedImage] = {}
        for image in content.records("images"):
            if (number := image.whole("id")) in images:
                image.refuse(f"the image id {number} is used twice; give each image its own")
            ordered = sorted(shapes.pop(number, []), key=lambda one: -one[0])  # stable: equals stay in their order
            images[number] = AnnotatedImage(
                files=(image.text("file_name"),),
                source=path,
                size=(image.whole("height"), image.whole("width")),
                shapes=tuple(shape for _, shape in ordered),
            )
        if shapes:
            content.refuse(f"annotations of the image {next(iter(shapes))}, which is not in 'images'; add it there")
        return Annotations(tuple(images.values()), tuple(names[number] for number in sorted(names)))


def _read_shape(entry: Record, label: str) -> tuple[Shape, float]:
    """An annotation, and its area in pixels."""
    segmentation: Any = entry.value.get("segmentation")
    is_crowd = entry.whole("iscrowd", 0) != 0
    if not segmentation:
        left, top, width, height = _read_box(entry)
        return Shape(
            label, Box(left, top, left + width, top + height), is_box=True, is_ignored=is_crowd
        ), width * height
    outline: Runs | Polygons
    if isinstance(segmentation, dict):
        outline = _read_runs(entry.record("segmentation"))
    else:
        outline = Polygons(tuple(tuple(entry.numbers(ring, "segmentation")) for ring in entry.entries("segmentation")))
    return Shape(label, outline, is_ignored=is_crowd), entry.number("area", None) or _measure(outline)


def _read_runs(runs: Record) -> Runs:
    size = [int(side) for side in runs.numbers(runs.entries("size"), "size")]
    if len(size) != 2 or min(size) < 1:
        runs.refuse(f"expected height and width in 'size', found {size}")
    counts = runs.value.get("counts")
    if isinstance(counts, str):
        return Runs(counts, (size[0], size[1]))
    return Runs(tuple(int(count) for count in runs.numbers(counts, "counts")), (size[0], size[1]))


def _read_box(entry: Record) -> list[float]:
    box = entry.numbers(entry.entries("bbox"), "bbox")
    if len(box) != 4 or min(box[2:]) < 0:
        entry.refuse(f"expected left, top, width and height in 'bbox', found {box}")
    return box


def _measure(outline: Runs | Polygons) -> float:
    """The area in pixels where the file does not say it; 0 of what is broken, which is refused when it is drawn."""
    if isinstance(outline, Polygons):
        return sum(map(_measure_ring, outline.rings))
    if not isinstance(outline.counts, str):
        return float(sum(outline.counts[1::2]))
    if math.prod(outline.size) > _MOST_PIXELS:
        return 0.0
    try:
        return float(outline.fill(outline.size).sum())
    except DataError:
        return 0.0


def _measure_ring(ring: tuple[float, ...]) -> float:
    """The shoelace formula."""
    points = list(zip(ring[::2], ring[1::2], strict=False))
    ends = points[1:] + points[:1]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, ends, strict=True))) / 2
