"""From mask logits of windows to mask logits of whole pictures, in strips of rows, so that no picture is too large."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tw_seg.resize import resize_logits
from tw_seg.types import Window

STRIP_BYTES = 2**28
"""Largest size of the mask logits of a strip."""

_SIGMAS = 4.0
"""A tile's border is this many standard deviations of its weights away from its centre."""


class Strip(NamedTuple):
    """Some rows of a picture, over its whole width.

    Attributes:
        top: The first row.
        logits: Mask logits, float32, shape (K, rows, w).
    """

    top: int
    logits: Tensor


class Blender:
    """Puts the windows of one picture together.

    A window of the whole picture is resized. Where tiles overlap, their mask logits are averaged with weights that fall
    from a tile's centre to its border as a Gaussian does. Rows are given away as soon as no further tile shows them:
    memory holds the logits of one row of tiles, and a strip.

    Args:
        size: Height and width of the picture.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._top = 0  # of the sums
        self._sums: Tensor | None = None  # weighted logits (K, rows, w) and, as one more row of classes, weights

    def add(self, window: Window, mask_logits: Tensor) -> Iterator[Strip]:
        """Add a window; the windows of a picture come in the order of their first rows.

        Args:
            window: Where it lies.
            mask_logits: What the model says of it, (K, H, W), padding included.

        Yields:
            The rows that are complete, each once, in order.
        """
        shown = mask_logits[:, : window.fit[0], : window.fit[1]]
        if (window.height, window.width) == self._size:
            yield from stretch(shown, self._size)
            return
        if self._sums is None or window.top > self._top:
            yield from self._move(window, len(mask_logits), mask_logits.device)
        assert self._sums is not None
        logits = lift_rejected(resize_logits(shown[None], (window.height, window.width))[0])
        weights = weigh_tile(window.height, window.width, logits.device)
        part = self._sums[:, : window.height, window.left : window.left + window.width]
        part[:-1] += logits * weights
        part[-1] += weights
        if window.last:
            yield from self._give(window.height)

    def _move(self, window: Window, classes: int, device: torch.device) -> Iterator[Strip]:
        """Give away the rows above a new row of tiles, and make room for its own."""
        done = window.top - self._top
        if done:
            yield from self._give(done)
        sums = torch.zeros((classes + 1, window.height, self._size[1]), device=device)
        if self._sums is not None and done < self._sums.shape[1]:
            sums[:, : self._sums.shape[1] - done] = self._sums[:, done:]
        self._sums, self._top = sums, window.top

    def _give(self, rows: int) -> Iterator[Strip]:
        assert self._sums is not None
        height = count_strip_rows(len(self._sums) - 1, self._size[1])
        for first in range(0, rows, height):
            part = self._sums[:, first : min(rows, first + height)]
            yield Strip(self._top + first, part[:-1] / part[-1])


def stretch(mask_logits: Tensor, size: tuple[int, int]) -> Iterator[Strip]:
    """Resize mask logits (K, h, w) bilinearly, as `tw_seg.resize.resize_logits` does, strip by strip."""
    height, width = size
    rows = count_strip_rows(len(mask_logits), width)
    if rows >= height:
        yield Strip(0, resize_logits(mask_logits[None], size)[0])
        return
    shown = mask_logits.float()
    places = ((torch.arange(height, device=shown.device) + 0.5) * (shown.shape[1] / height) - 0.5).clamp(min=0)
    for top in range(0, height, rows):
        place = places[top : top + rows]
        above = place.long()
        below = (above + 1).clamp(max=shown.shape[1] - 1)
        share = (place - above)[:, None]
        lines = shown[:, above] * (1 - share) + shown[:, below] * share
        yield Strip(top, resize_logits(lines[None], (len(place), width))[0])


def count_strip_rows(classes: int, width: int) -> int:
    """Rows of a strip of float32 logits that takes up to `STRIP_BYTES`, at least one."""
    return max(1, STRIP_BYTES // (4 * classes * width))


def weigh_tile(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Weights of a tile's pixels, (height, width): a Gaussian of each side, with its centre in that of the tile."""
    sides = [
        torch.exp(-0.5 * ((torch.arange(side, device=device) + 0.5) / side * 2 - 1).mul(_SIGMAS).square())
        for side in (height, width)
    ]
    return sides[0][:, None] * sides[1]


def lift_rejected(mask_logits: Tensor) -> Tensor:
    """Give classes that were left out (`tw_seg.models.gated`) the lowest logit of the others, pixel by pixel.

    They win no pixel of this tile then either, and an average with the next tile is not ruled by half the lowest
    number.

    Args:
        mask_logits: Shape (..., K, h, w).
    """
    rejected = mask_logits < torch.finfo(mask_logits.dtype).min / 4
    if not rejected.any():
        return mask_logits
    lowest = mask_logits.masked_fill(rejected, math.inf).amin(-3, keepdim=True)
    return torch.where(rejected, lowest, mask_logits)
