"""The layout of Label Studio's JSON export."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from tw_seg.data.layouts.annotated import AnnotatedImage, AnnotatedImages, Annotations
from tw_seg.data.layouts.brush_rle import decode_brush
from tw_seg.data.layouts.shapes import Box, Ellipse, Outline, Polygons, Shape, Size, turn_box
from tw_seg.data.layouts.structured import Record, list_records, read_json

_WITHOUT_PIXELS = ("", "relation", "rating", "textarea", "number")  # "": labels in a result of their own
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts in front of the name of an uploaded file


@dataclass(frozen=True, slots=True)
class Brush:
    """A mask in Label Studio's code.

    Attributes:
        code: See `tw_seg.data.layouts.brush_rle`.
    """

    code: bytes

    def fill(self, size: Size) -> np.ndarray:
        """See `tw_seg.data.layouts.shapes.Outline`."""
        return decode_brush(self.code, size) > 0


class LabelStudioDataset(AnnotatedImages):
    """Images whose objects are brush strokes, polygons, ellipses or rectangles in Label Studio's JSON export.

    Layout: ``annotations.json`` (``annotations=``, the export "JSON", not "JSON-MIN"), and the images below
    ``images=``, by the name that the task's URL ends with, with or without the eight digits that Label Studio puts in
    front of an upload. A pixel without a region is background. Later regions lie over earlier ones. A rectangle is not
    filled: see `tw_seg.data.layouts.shapes.draw_mask`; choices are image-level labels. Of several annotations of
    a task the ground truth counts, or else the last; a task without any, or with skipped ones only, is unlabelled. All
    arguments are those of `tw_seg.data.layouts.annotated.AnnotatedImages`.
    """

    default_annotations = "annotations.json"

    def _read_annotations(self, path: Path, folder: Path) -> Annotations:
        tasks = list_records(read_json(path), path)
        return Annotations(tuple(_read_task(task) for task in tasks), None)


def _read_task(task: Record) -> AnnotatedImage:
    if not {"data", "annotations"} <= task.value.keys():
        task.refuse("expected 'data' and 'annotations'; export the project as JSON, not as JSON-MIN")
    files = _list_files(_find_url(task.record("data")))
    given = [one for one in task.records("annotations") if not one.value.get("was_cancelled")]
    if not given:
        return AnnotatedImage(files=files, source=task.path, size=None, is_annotated=False)
    chosen = next((one for one in given if one.value.get("ground_truth") is True), given[-1])
    results = list(chosen.records("result", []))
    names: dict[str, set[str]] = defaultdict(set)
    for result in results:
        names[result.text("id", "")].update(_list_labels(result))
    shapes, sizes, shown = [], set(), set()
    for result in results:
        kind, labels = result.text("type").removesuffix("labels"), set(_list_labels(result))
        if kind == "choices":
            shown.update(_read_choices(result.record("value")))
        elif kind in _OUTLINES:
            size = (result.whole("original_height"), result.whole("original_width"))
            sizes.add(size)
            shapes.append(_read_region(result, kind, size, labels or set(names[result.text("id", "")])))
        elif kind not in _WITHOUT_PIXELS:
            known = ", ".join(f"{name}labels" for name in _OUTLINES)
            result.refuse(f"expected {known} or choices, found {result.text('type')!r}; draw it as one of these")
    if len(sizes) > 1:
        task.refuse(f"its regions speak of images of {len(sizes)} sizes: {sorted(sizes)}; export the project again")
    return AnnotatedImage(
        files=files, source=task.path, size=next(iter(sizes), None), shapes=tuple(shapes), shown=frozenset(shown)
    )


def _read_region(result: Record, kind: str, size: Size, names: set[str]) -> Shape:
    if result.whole("image_rotation", 0):
        result.refuse("the image was turned while it was annotated; turn it back in Label Studio, and export again")
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "none"
        result.refuse(f"expected one label of the region, found {found}; give it one")
    return Shape(names.pop(), _OUTLINES[kind](result.record("value"), size), is_box=kind == "rectangle")


def _read_choices(value: Record) -> list[str]:
    choices: list[str] = value.entries("choices")
    if not all(isinstance(name, str) for name in choices):
        value.refuse(f"expected names in 'choices', found {choices}")
    return choices


def _list_labels(result: Record) -> list[str]:
    """The labels of a region, which stand under the name of its type."""
    kind = result.text("type")
    value = result.value.get("value")
    found = value.get(kind) if isinstance(value, dict) and kind.endswith("labels") else None
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _find_url(data: Record) -> str:
    """Where the image of a task is: under ``image``, or the only entry that looks like a file."""
    texts = {key: value for key, value in data.value.items() if isinstance(value, str)}
    url = texts.get("image") or texts.get("img") or next((v for v in texts.values() if PurePosixPath(v).suffix), None)
    return (
        url if url is not None else data.refuse("expected the address of an image in 'image'; export the project again")
    )


def _list_files(url: str) -> tuple[str, ...]:
    """Names that the file of an address may have below the folder of images, the longest first."""
    path = _find_path(url.replace("\\", "/")).replace("\\", "/")
    folders = [part for part in path.split("/") if part not in ("", ".", "..")] or [path]
    names = ["/".join(folders[i:]) for i in range(len(folders))]
    return (*names, *([_UPLOAD.sub("", folders[-1])] if _UPLOAD.match(folders[-1]) else []))


def _find_path(url: str) -> str:
    """The path in an address: what stands behind ``?d=`` of a local file, or before the ``?``."""
    if not url.startswith("/data/") and "://" not in url:
        return url
    try:
        parts = urlsplit(url.replace("#", "%23"))  # of a file's name, as nothing links into an image
    except ValueError:  # no address
        return url
    return unquote(parse_qs(parts.query).get("d", [""])[0] or parts.path)


def _read_brush(value: Record, size: Size) -> Outline:
    try:
        return Brush(bytes(value.entries("rle")))
    except (TypeError, ValueError):
        value.refuse("expected bytes, 0 to 255, in 'rle'; export the project again")


def _read_polygon(value: Record, size: Size) -> Outline:
    ring: list[float] = []
    for point in value.entries("points"):
        if len(corner := value.numbers(point, "points")) != 2:
            value.refuse(f"expected x and y of a corner in 'points', found {corner}")
        ring += _scale(corner, size)
    return Polygons((tuple(ring),))


def _read_rectangle(value: Record, size: Size) -> Outline:
    left, top = _scale([value.number("x"), value.number("y")], size)
    width, height = _scale([value.number("width"), value.number("height")], size)
    right, bottom = left + width, top + height
    if not (angle := value.number("rotation", 0.0)):
        return Box(left, top, right, bottom)
    return turn_box([(left, top), (right, top), (right, bottom), (left, bottom)], (left, top), angle)


def _read_ellipse(value: Record, size: Size) -> Outline:
    x, y = _scale([value.number("x"), value.number("y")], size)
    across, along = _scale([value.number("radiusX"), value.number("radiusY")], size)
    return Ellipse((x, y), (across, along), value.number("rotation", 0.0))


def _scale(percent: list[float], size: Size) -> list[float]:
    """Shares of width and height, in per cent, as pixels."""
    return [share * side / 100 for share, side in zip(percent, size[::-1], strict=True)]


_OUTLINES: dict[str, Callable[[Record, Size], Outline]] = {
    "brush": _read_brush,
    "polygon": _read_polygon,
    "ellipse": _read_ellipse,
    "rectangle": _read_rectangle,
}
