"""The picture that ``tw-seg demo`` makes: each photograph, its objects and where the likeliest was seen."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tw_seg.models.posthoc.photograph import FoundObject

COLORS = ("#ff5d73", "#3ec9ff", "#ffd447", "#7be38a", "#c79bff")
"""Of the objects of a photograph, the likeliest first; more are drawn in these again."""

_PAPER = "#14171c"
_WIDTH = 3.2  # of a tile, in inches


def draw_finds(photos: Mapping[str, np.ndarray], finds: Mapping[str, Sequence[FoundObject]]) -> Figure:
    """Three tiles for each photograph: itself, its objects in colour, the relevance of the likeliest.

    Args:
        photos: RGB, uint8, (H, W, 3), by name.
        finds: Their objects.
    """
    # A tile's height follows its photograph's; a panorama or a tower stays readable.
    heights = [min(max(photo.shape[0] / photo.shape[1], 0.4), 1.2) * _WIDTH for photo in photos.values()]
    text = 0.42  # of the line above a row
    figure = Figure(figsize=(3 * _WIDTH + 0.4, sum(heights) + text * len(heights) + 0.2), dpi=110, facecolor=_PAPER)
    grid = figure.subplots(
        len(heights),
        3,
        squeeze=False,
        gridspec_kw={
            "height_ratios": heights,
            "left": 0.015,
            "right": 0.985,
            "bottom": 0.1 / figure.get_figheight(),
            "top": 1 - text / figure.get_figheight(),
            "wspace": 0.03,
            "hspace": text * len(heights) / sum(heights),
        },
    )
    for row, (name, photo) in zip(grid, photos.items(), strict=True):
        _draw_row(row, photo, finds[name])
    return figure


def _draw_row(row: Sequence[Axes], photo: np.ndarray, found: Sequence[FoundObject]) -> None:
    pale = _fade(photo)
    row[0].imshow(photo)
    row[1].imshow(_paint(photo, pale, found))
    for number, one in enumerate(found):
        row[1].contour(one.mask, levels=[0.5], colors=[_color(number)], linewidths=1.6)
    row[2].imshow(pale)
    if found:
        heat = found[0].heatmap
        row[2].imshow(heat, cmap="inferno", alpha=np.clip(heat * 1.6, 0, 0.9), vmin=0, vmax=1)
    for axes in row:
        axes.set_axis_off()
    for axes, (number, one) in zip(row, enumerate(found), strict=False):  # a line has room for three objects
        label = one.describe() if len(found) == 1 else textwrap.shorten(one.describe(), 40, placeholder=" ...")
        axes.set_title(label, loc="left", color=_color(number), fontsize=12, fontweight="bold", pad=5)


def _fade(photo: np.ndarray) -> np.ndarray:
    """A dark grey version of a photograph, float (H, W, 3) in [0, 1]."""
    return np.repeat(0.35 * photo.mean(axis=2, keepdims=True) / 255, 3, axis=2)


def _paint(photo: np.ndarray, pale: np.ndarray, found: Sequence[FoundObject]) -> np.ndarray:
    """The objects in their own colours, lightly tinted, on what is left of the photograph."""
    painted = pale.copy()
    for number, one in enumerate(found):
        painted[one.mask] = 0.8 * photo[one.mask] / 255 + 0.2 * np.array(to_rgb(_color(number)))
    return painted


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]
