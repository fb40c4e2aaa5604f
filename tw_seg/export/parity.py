"""Does a file compute what the model computes? Measured on pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from tw_seg.export.deployed import Deployed

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Pictures (N, H, W, C) to what a file returns."""


class Parity(NamedTuple):
    """How far a file is from the model it was made of.

    Attributes:
        pictures: How many were compared.
        logit_difference: Largest difference of a mask logit (of a probability, for a model without masks).
        logit_scale: Largest magnitude of one.
        equal_pixels: Share of pixels with the same class; 1 for a model without masks.
    """

    pictures: int
    logit_difference: float
    logit_scale: float
    equal_pixels: float

    def __str__(self) -> str:
        return (
            f"{self.equal_pixels:.4%} of the pixels of {self.pictures} pictures are equal, largest difference of a "
            f"logit {self.logit_difference:.2g} (they reach {self.logit_scale:.3g})"
        ).replace("%", " %")


def measure_parity(deployed: Deployed, run: Run, pictures: Sequence[np.ndarray]) -> Parity:
    """Compare a file with the model, one picture after the other, at their own sizes.

    Args:
        deployed: The model.
        run: Runs the file.
        pictures: As the file takes them, each (H, W, C).
    """
    equal = pixels = 0
    difference = scale = 0.0
    for picture in pictures:
        images = np.ascontiguousarray(picture[None])
        with torch.no_grad():
            wanted = [one.numpy() for one in deployed(torch.from_numpy(images))]
        found = run(images)
        if len(wanted) > 1:
            equal += int((wanted[0] == found[0]).sum())
            pixels += wanted[0].size
        # What the gate rejects is a very low number, the same in both.
        kept = np.abs(wanted[-1]) < 1e30
        if kept.any():
            difference = max(difference, float(np.abs(wanted[-1] - found[-1])[kept].max()))
            scale = max(scale, float(np.abs(wanted[-1])[kept].max()))
    return Parity(len(pictures), difference, scale, equal / pixels if pixels else 1.0)
