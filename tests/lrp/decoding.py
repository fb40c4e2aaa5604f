"""Pictures, a comparison and a loss that the tests of decodes share."""

from __future__ import annotations

import torch
from torch import Tensor

from tw_seg.lrp import Decoded


def pictures(*size: int) -> Tensor:
    return torch.randn(*(size or (3, 3, 17, 19)), dtype=torch.float64)


def assert_equal(found: Decoded, expected: Decoded, rtol: float = 1e-12) -> None:
    atol = rtol * float(expected.heatmaps.detach().abs().max())
    torch.testing.assert_close(found.logits, expected.logits, rtol=rtol, atol=atol)
    torch.testing.assert_close(found.heatmaps, expected.heatmaps, rtol=rtol, atol=atol)


def loss_of(heatmaps: Tensor) -> Tensor:
    """A loss whose gradient differs from pixel to pixel and depends on the heatmaps."""
    pixels = torch.linspace(-1, 1, heatmaps.numel(), dtype=heatmaps.dtype).reshape(heatmaps.shape)
    return (heatmaps * pixels).sum() + heatmaps.square().sum() / heatmaps.detach().abs().max()
