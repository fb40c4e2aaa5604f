"""Triangles: a generated data set in which it is known what a mask follows from, so that explanations can be wrong.

Three bright dots are the corners of a triangle that is not drawn; a red or blue badge elsewhere says what class it is.
Dots and badge are the *cues*. Inside the triangle there is nothing but the ground; a dark dot somewhere means nothing.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tw_seg.data.layouts.generated import GeneratedData
from tw_seg.types import Sample

CLASSES: tuple[str, ...] = ("background", "red", "blue")

_BADGES = {1: (220, 40, 40), 2: (40, 60, 220)}
_DOT, _DARK_DOT = (255, 255, 255), (20, 20, 20)


class Triangles(GeneratedData):
    """Pictures of one triangle each, whose mask follows from cues outside and at the corners of it.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: Side of the square pictures in pixels.
        length: Number of pictures; default 2,000 / 200 / 500.
        seed: Pictures are a pure function of it, of the split and of their index.

    Attributes:
        classes: The class names; index 0 is the background.
        names: One name per picture.
        labels: Image-level multi-hot labels, float32, shape (length, 3).

    Raises:
        DataError: For an unknown split, a size below 32 or an empty length.
    """

    classes = CLASSES
    noun = "picture"
    smallest = 32

    def __init__(self, split: str, *, size: int = 64, length: int | None = None, seed: int = 0) -> None:
        super().__init__(split, size=size, length=length, seed=seed)
        for index in range(len(self)):
            self.labels[index, self._choose_class(index)] = 1

    def __getitem__(self, index: int) -> Sample:
        """The picture at ``index``, image and mask of shape (size, size, 3) and (size, size)."""
        index = self._find_row(index)
        corners, badge, dark = self._arrange(index)
        image = Image.fromarray(self._make_ground(index))
        kind = self._choose_class(index)
        self._draw_dots(image, [dark], _DARK_DOT)
        self._draw_dots(image, corners, _DOT)
        self._draw_badge(image, badge, _BADGES[kind])
        mask = Image.new("L", (self.size, self.size))
        ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners.tolist()], fill=kind)
        return Sample(np.array(image), np.array(mask), self.labels[index], self.names[index])

    def cues(self, index: int) -> np.ndarray:
        """What the mask of a picture follows from: the pixels of the three dots and of the badge, bool (size, size)."""
        corners, badge, _ = self._arrange(self._find_row(index))
        cues = Image.new("L", (self.size, self.size))
        self._draw_dots(cues, corners, 255)
        self._draw_badge(cues, badge, 255)
        return np.array(cues) > 0

    def _choose_class(self, index: int) -> int:
        return int(self._rng(index, 0).integers(1, len(CLASSES)))

    def _arrange(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Corners (3, 2), the badge's centre and the dark dot's, as x and y in pixels."""
        rng = self._rng(index, 1)
        while True:  # about one draw in 17 will do
            points = rng.uniform(0.1, 0.9, size=(5, 2))
            corners, badge = points[:3], points[3]
            (ax, ay), (bx, by) = corners[1] - corners[0], corners[2] - corners[0]
            apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(5)
            if 0.05 < abs(ax * by - ay * bx) / 2 and apart.min() > 0.2 and _distance(badge, corners) > 0.12:
                pixels = (points * self.size).round()
                return pixels[:3], pixels[3], pixels[4]

    def _make_ground(self, index: int) -> np.ndarray:
        """Soft grey clouds, uint8 (size, size, 3)."""
        coarse = Image.fromarray(self._rng(index, 2).uniform(70, 170, size=(5, 5)).astype(np.uint8))
        return np.asarray(coarse.resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB"))

    def _draw_dots(self, image: Image.Image, centers: np.ndarray | list[np.ndarray], color: tuple | int) -> None:
        radius = self.size / 20
        for x, y in centers:
            ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def _draw_badge(self, image: Image.Image, center: np.ndarray, color: tuple | int) -> None:
        (x, y), half = center, self.size / 16
        ImageDraw.Draw(image).rectangle((x - half, y - half, x + half, y + half), fill=color)


def _distance(point: np.ndarray, corners: np.ndarray) -> float:
    """How far a point lies outside a side of a triangle, at most as far as it is from the triangle; negative inside."""
    sides = np.roll(corners, -1, axis=0) - corners
    normals = np.stack([sides[:, 1], -sides[:, 0]], axis=1) / np.linalg.norm(sides, axis=1, keepdims=True)
    inwards = ((corners.mean(0) - corners) * normals).sum(1, keepdims=True)
    return float((-np.sign(inwards) * (point - corners) * normals).sum(1).max())
