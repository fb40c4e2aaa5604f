"""Pictures of masks and heatmaps, as arrays and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tw_seg.errors import InputError
from tw_seg.files import write_whole
from tw_seg.types import BACKGROUND, IGNORE_INDEX

IGNORE_COLOR = (224, 224, 192)


def make_palette() -> np.ndarray:
    """The Pascal VOC colours of the ids 0..255, uint8, shape (256, 3); 255 (ignored) is cream.

    Bit j of an id becomes a high bit of red, green or blue in turn, so neighbours differ clearly.
    """
    ids = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        colors[:, bit % 3] |= (((ids >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    colors[IGNORE_INDEX] = IGNORE_COLOR
    return colors


def draw_mask(mask: np.ndarray) -> np.ndarray:
    """Colours of a mask (H, W) of ids 0..255: uint8, shape (H, W, 3)."""
    return make_palette()[mask]


def draw_overlay(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture with its mask: half grey, half coloured where there is an object, elsewhere as it is.

    Args:
        picture: uint8, shape (H, W, C): RGB, or the first channel is shown.
        mask: Ids 0..255, shape (H, W).

    Returns:
        uint8, shape (H, W, 3).
    """
    shown = picture if picture.shape[2] == 3 else np.repeat(picture[..., :1], 3, axis=2)
    grey = shown.mean(axis=2, keepdims=True)
    painted = (mask != BACKGROUND) & (mask != IGNORE_INDEX)
    return np.where(painted[..., None], (grey + draw_mask(mask)) / 2, shown).astype(np.uint8)


def draw_heatmap(heatmap: np.ndarray) -> np.ndarray:
    """Signed values (H, W) as blue (negative), white (0) and red, scaled by the largest magnitude: uint8."""
    values = np.nan_to_num(heatmap.astype(np.float32))
    values = values / max(float(np.abs(values).max(initial=0)), 1e-12)
    fade = np.stack([1 + values.clip(max=0), 1 - np.abs(values), 1 - values.clip(min=0)], axis=-1)
    return (255 * fade + 0.5).astype(np.uint8)


def draw_image(image: np.ndarray) -> np.ndarray:
    """A normalised image (C, H, W), stretched to its own range: uint8, shape (H, W, 3)."""
    first, last = float(image.min()), float(image.max())
    return draw_pixels(((image - first) / max(last - first, 1e-12)).transpose(1, 2, 0))


def draw_pixels(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) as people see it, uint8, shape (H, W, 3): its first three channels, or the first as grey.

    Args:
        image: uint8, or float from 0 to 1.
    """
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    return shown if shown.dtype == np.uint8 else (255 * shown + 0.5).astype(np.uint8)


def join_tiles(tiles: list[np.ndarray], *, gap: int = 2) -> np.ndarray:
    """RGB tiles of one height (H, w, 3) in a row, with white gaps of ``gap`` pixels."""
    white = np.full((tiles[0].shape[0], gap, 3), 255, dtype=np.uint8)
    row = [part for tile in tiles for part in (white, tile)]
    return np.concatenate(row[1:], axis=1)


def save_picture(path: Path, rgb: np.ndarray) -> None:
    """Write RGB pixels (H, W, 3), uint8, as PNG."""
    write_whole(path, lambda draft: Image.fromarray(rgb).save(draft, format="PNG"))


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) of ids 0..255 as a palette PNG: the pixels are the ids, viewers show colours.

    Raises:
        InputError: The mask is not integer, not two-dimensional or holds other ids.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.min(initial=0) < 0 or mask.max(initial=0) > 255:
        raise InputError(f"{path}: a mask must be an integer array (H, W) of ids 0..255, got {mask.dtype} {mask.shape}")
    picture = Image.fromarray(mask.astype(np.uint8), mode="P")
    picture.putpalette(make_palette().tobytes())
    write_whole(path, lambda draft: picture.save(draft, format="PNG"))
