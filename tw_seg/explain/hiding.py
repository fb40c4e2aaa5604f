"""What a model sees of an image of which a part is hidden: its pixels are replaced, and results depend on by what."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from tw_seg.errors import InputError

Fill = Callable[[Tensor, int], Tensor]
"""Takes images (N, C, H, W) and a seed, returns what may replace their pixels, of the same shape."""


def fill_zero(images: Tensor, seed: int) -> Tensor:
    """Zeros: the mean colour of the data set where images are normalised by it."""
    return torch.zeros_like(images)


def fill_mean(images: Tensor, seed: int) -> Tensor:
    """The mean colour of each image."""
    return images.mean((2, 3), keepdim=True).expand_as(images)


def fill_blur(images: Tensor, seed: int) -> Tensor:
    """The image itself, blurred with a standard deviation of a tenth of its shorter side: colours stay visible."""
    sigma = min(images.shape[2:]) / 10
    radius = min(round(2 * sigma), min(images.shape[2:]) - 1)  # mirrored at the edges, so shorter than a side
    return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


def fill_noise(images: Tensor, seed: int) -> Tensor:
    """Normal noise with each image's mean colour and standard deviation; the same draw for all images."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(images.shape[1:], generator=generator, dtype=torch.float64).to(images)
    center, spread = images.mean((2, 3), keepdim=True), images.std((2, 3), correction=0, keepdim=True)
    return center + spread * draw


FILLS: dict[str, Fill] = {"zero": fill_zero, "mean": fill_mean, "blur": fill_blur, "noise": fill_noise}
"""What hidden pixels become, by name."""


def make_fill(images: Tensor, fill: str, *, seed: int = 0) -> Tensor:
    """What hidden pixels of images become.

    Args:
        images: Shape (N, C, H, W).
        fill: A name in `FILLS`.
        seed: For ``"noise"``; the global random state is neither read nor changed.

    Returns:
        Shape (N, C, H, W). What an image gets does not depend on the others.

    Raises:
        InputError: The name is unknown.
    """
    check_fill(fill)
    return FILLS[fill](images, seed)


def check_fill(fill: str) -> None:
    """Check the name of a fill.

    Raises:
        InputError: It is unknown.
    """
    if fill not in FILLS:
        raise InputError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")


def show_regions(images: Tensor, fills: Tensor, regions: Tensor) -> Tensor:
    """Images of which only a region is shown.

    Args:
        images: Shape (P, C, H, W).
        fills: What hidden pixels become, of the same shape.
        regions: Bool, or how much of a pixel is shown in [0, 1], shape (P, H, W).

    Examples:
        >>> show_regions(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.tensor([[[True, False]]]))
        tensor([[[[1., 0.]]]])
    """
    if regions.dtype == torch.bool:
        return torch.where(regions[:, None], images, fills)
    return fills + regions[:, None] * (images - fills)
