"""A picture and masks of it, without torch."""

from __future__ import annotations

import numpy as np

NAMES = ["background", "cat", "dog"]
WHOLE = np.zeros((48, 64), dtype=np.uint8)
WHOLE[16:32, 20:40] = 2
MARKS = np.full((48, 64), 255, dtype=np.uint8)
MARKS[:4], MARKS[20:24] = 0, 1


def make_picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Grey noise with a red square in its middle."""
    pixels = np.random.default_rng(seed).integers(90, 160, (height, width, 1), dtype=np.uint8).repeat(3, axis=2)
    pixels[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = (220, 30, 30)
    return pixels
