"""The contact sheet: images with their masks for a person to judge, what is wrong first."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tw_seg.data.check.findings import KINDS, Finding, ImageName
from tw_seg.data.check.report import CheckResult
from tw_seg.data.check.scan import load_sample
from tw_seg.data.dataset import SegmentationData
from tw_seg.errors import DataError
from tw_seg.files import write_whole
from tw_seg.fonts import show_characters
from tw_seg.pictures import make_palette
from tw_seg.printable import make_printable
from tw_seg.types import BACKGROUND, IGNORE_INDEX, Sample

_COLUMNS, _ROWS = 6, 5
_SIDE = 320  # pixels of the longer side of a picture
_OPACITY = 0.45
_PER_FINDING = 3  # pictures of one finding: a group may be large
_FONT = 7.0  # points
_COLORS = {"error": "#b3261e", "warning": "#9a6700", "note": "#1f2a35"}
_OPEN = IGNORE_INDEX - 1  # the colour of pixels that may be of several classes


class Tile(NamedTuple):
    """A picture of the sheet: an image, and what is said about it."""

    image: ImageName
    text: str
    color: str


def draw_contact_sheet(result: CheckResult, path: Path) -> None:
    """Draw up to 30 images with their masks, those of the worst findings first, then examples of each class.

    Args:
        result: The check.
        path: A PNG file.
    """
    tiles = choose_tiles(result)
    with show_characters([*result.report.classes, *(text for tile in tiles for text in (*tile.image, tile.text))]):
        figure = _draw_sheet(result, tiles)
    with warnings.catch_warnings():  # characters that no font has are boxes
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        write_whole(path, partial(figure.savefig, format="png", dpi=100))


def _draw_sheet(result: CheckResult, tiles: Sequence[Tile]) -> Figure:
    rows = max(1, -(-len(tiles) // _COLUMNS))
    figure = Figure(figsize=(2.4 * _COLUMNS, 2.9 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    open_pixels = False
    for axes, tile in zip_longest(grid.flat, tiles):
        axes.set_axis_off()
        if tile is not None:
            open_pixels |= _draw_tile(axes, tile, result.splits[tile.image[0]])
    colors = make_palette() / 255
    shown = [(k, name) for k, name in enumerate(result.report.classes) if k != BACKGROUND]
    others = [(IGNORE_INDEX, "ignored"), (_OPEN, "one of several classes")]
    handles = [Patch(color=colors[k], label=name) for k, name in [*shown, *(others if open_pixels else others[:1])]]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 9), fontsize="small")
    return figure


def choose_tiles(result: CheckResult) -> list[Tile]:
    """The images of the sheet: a few of every kind of finding in turn, the worst first, then examples of classes."""
    kinds = [[found for found in result.report.findings if found.kind == kind] for kind in KINDS]
    in_turn = chain.from_iterable(zip_longest(*kinds))
    rank = {kind: place for place, kind in enumerate(KINDS)}
    most = _COLUMNS * (_ROWS - 1)
    tiles: list[Tile] = []
    places: list[int] = []
    for finding in in_turn:
        if finding is not None and finding.images and len(tiles) < most:
            found = _make_tiles(finding)[: most - len(tiles)]
            tiles += found
            places += [rank[finding.kind]] * len(found)
    tiles = [tile for _, tile in sorted(zip(places, tiles, strict=True), key=lambda pair: pair[0])]
    examples = _choose_examples(result, {tile.image for tile in tiles}, _COLUMNS * _ROWS - len(tiles))
    return tiles + examples


def _make_tiles(finding: Finding) -> list[Tile]:
    title = KINDS[finding.kind].title
    images = finding.images
    if len({split for split, _ in images}) > 1:  # one of each split, side by side
        images = tuple({split: (split, name) for split, name in reversed(images)}.values())
    chosen = images[:_PER_FINDING]
    text = finding.text if len(chosen) == 1 and ": " in finding.text else title
    return [Tile(image, _shorten(text), _COLORS[finding.severity]) for image in chosen]


def _shorten(text: str) -> str:
    """What an error says without its path."""
    return text.partition(": ")[2] if ": " in text else text


def _choose_examples(result: CheckResult, taken: set[ImageName], count: int) -> list[Tile]:
    """Images that can be read, of each class in turn; those with a mask first."""
    broken = {image for finding in result.report.findings if finding.kind == "image" for image in finding.images}
    candidates: list[list[ImageName]] = []
    for k in range(BACKGROUND + 1, len(result.report.classes)):
        rows = [
            (split, row)
            for split, data in result.splits.items()
            for row in np.flatnonzero(data.labels[:, k] > 0).tolist()
        ]
        rows.sort(key=lambda place: not _has_mask(result.splits[place[0]], place[1]))
        candidates.append([(split, result.splits[split].names[row]) for split, row in rows])
    in_turn = chain.from_iterable(zip_longest(*candidates))
    chosen = dict.fromkeys(image for image in in_turn if image is not None and image not in taken | broken)
    return [Tile(image, "", _COLORS["note"]) for image in list(chosen)[:count]]


def _has_mask(data: SegmentationData, row: int) -> bool:
    has_mask: np.ndarray | None = getattr(data, "has_mask", None)
    return has_mask is None or bool(has_mask[row])


def _draw_tile(axes: Axes, tile: Tile, data: SegmentationData) -> bool:
    """Draw an image, its mask and what is said of it; returns whether a pixel may be of several classes."""
    split, name = tile.image
    sample = _read(data, data.names.index(name))
    has_sets = False
    if sample is None:
        axes.imshow(np.full((3, 4, 3), 225, dtype=np.uint8))
        axes.text(1.5, 1, "cannot be read", ha="center", va="center", color=_COLORS["error"])
    else:
        if sample.mask is not None:  # sets of classes are one colour
            is_set = (sample.mask >= len(data.classes)) & (sample.mask != IGNORE_INDEX)
            has_sets = bool(is_set.any())
            sample = sample._replace(mask=np.where(is_set, _OPEN, sample.mask).astype(np.uint8))
        axes.imshow(_draw_overlay(sample))
    axes.set_title(make_printable(f"{split}/{name}"), fontsize=_FONT, loc="left", pad=3)
    below = [] if sample is None else [(_wrap(_name_classes(sample, data.classes), 2), _COLORS["note"])]
    _write_below(axes, [*below, (_wrap(tile.text, 3), tile.color)])
    return has_sets


def _name_classes(sample: Sample, classes: Sequence[str]) -> str:
    named = ", ".join(classes[k] for k in np.flatnonzero(sample.labels > 0).tolist() if k != BACKGROUND) or "no object"
    return named if sample.mask is not None else f"{named} (no mask)"


def _write_below(axes: Axes, texts: Sequence[tuple[str, str]]) -> None:
    """Write texts in their colours below a picture."""
    down = 3.0  # points
    for text, color in texts:
        axes.annotate(
            text,
            (0, 0),
            xytext=(0, -down),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=_FONT,
            color=color,
        )
        down += 1.25 * _FONT * len(text.splitlines())


def _wrap(text: str, lines: int) -> str:
    return fill(make_printable(text), 46, max_lines=lines, placeholder=" ...")


def _read(data: SegmentationData, row: int) -> Sample | None:
    for mask in (True, False):
        try:
            sample = load_sample(data, row, mask=mask)
        except DataError:
            continue
        return sample if mask else sample._replace(mask=None)
    return None


def _draw_overlay(sample: Sample) -> np.ndarray:
    """The image with its mask in colours, small."""
    image = _make_rgb(sample.image)
    factor = _SIDE / max(image.shape[:2])
    size = tuple(max(1, round(factor * side)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    if sample.mask is None:
        return small
    mask = cv2.resize(sample.mask, size, interpolation=cv2.INTER_NEAREST)
    opacity = np.where(mask == BACKGROUND, 0.0, _OPACITY)[..., None]
    return (small * (1 - opacity) + make_palette()[mask] * opacity).astype(np.uint8)


def _make_rgb(image: np.ndarray) -> np.ndarray:
    """Any image as 8-bit RGB: its first three channels, or the first one as grey, stretched if deeper."""
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    low, high = float(shown.min()), float(shown.max())
    return ((shown - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
