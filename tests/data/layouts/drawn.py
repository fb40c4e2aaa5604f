"""What the tests of the layouts with annotations share: pictures, and masks that any writer can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

NAMES = ("a b.JPG", "sub/caf\u00e9.png", "c;,|.1.png")
"""File names with spaces, separators, folders, non-ASCII letters and dots."""
CLASSES = ("background", "cat|dog", "gro\u00df \u00e4")


def save_image(path: Path, size: tuple[int, int] = (9, 12)) -> None:
    """A grey picture of this height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 100, dtype=np.uint8)).save(path)


def make_masks(count: int, *, values: tuple[int, ...] = (0, 1, 2), seed: int = 0) -> list[np.ndarray]:
    """Masks of different sizes, uint8, in blocks, the first of one row, the second of one pixel."""
    rng = np.random.default_rng(seed)
    sizes = [(1, 37), (1, 1), *((int(rng.integers(3, 30)), int(rng.integers(3, 30))) for _ in range(count))]
    masks = []
    for height, width in sizes[:count]:
        blocks = rng.choice(np.array(values, dtype=np.uint8), (height // 3 + 1, width // 4 + 1))
        masks.append(np.kron(blocks, np.ones((3, 4), dtype=np.uint8))[:height, :width].copy())
    return masks


def polygons(width: int, height: int) -> st.SearchStrategy[list[float]]:
    """Corners x, y in turn, some of them a little outside of the image."""
    corner = st.tuples(st.floats(-2, width + 2, width=32), st.floats(-2, height + 2, width=32))
    return st.lists(corner, min_size=3, max_size=7).map(lambda corners: [value for xy in corners for value in xy])
