"""Segmentation models of which it is known by construction what they look at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Neighbourhood(nn.Module):
    """Predicts the class where the mean of the k x k pixels around (zeros outside) is above a threshold."""

    def __init__(self, size: int = 5, threshold: float = 0.5, steepness: float = 20.0) -> None:
        super().__init__()
        self.size, self.threshold, self.steepness = size, threshold, steepness

    def forward(self, images: Tensor) -> Tensor:
        means = F.avg_pool2d(images[:, :1], self.size, stride=1, padding=self.size // 2)
        return self.steepness * (means - self.threshold)


class DistantPatch(nn.Module):
    """Predicts one fixed object, of two classes by the brightness of one patch elsewhere, and looks at nothing else.

    Class 0 is the background, predicted outside the object, and everywhere while the patch is dark.
    """

    def __init__(
        self,
        size: tuple[int, int],
        object_at: tuple[slice, slice],
        patch_at: tuple[slice, slice],
        threshold: float = 0.75,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        object_mask, patch = torch.zeros(size), torch.zeros(size)
        object_mask[object_at], patch[patch_at] = 1, 1
        self.register_buffer("object_mask", object_mask)
        self.register_buffer("patch", patch)

    def forward(self, images: Tensor) -> Tensor:
        bright = (images.mean(1) * self.patch).sum((1, 2)) / self.patch.sum()
        score = 10 * (bright - self.threshold)[:, None, None] * self.object_mask - 5 * (1 - self.object_mask)
        return torch.stack([torch.zeros_like(score), score], dim=1)


def square_image(side: int, at: tuple[slice, slice]) -> Tensor:
    """An image (1, 1, side, side) that is 1 at a place and 0.2 elsewhere."""
    image = torch.full((1, 1, side, side), 0.2)
    image[0, 0][at] = 1
    return image
