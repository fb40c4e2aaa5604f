"""A BatchNorm beside a linear layer becomes part of its map only where its channels are the layer's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles import nets
from tests.oracles.gradients import input_x_gradient
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.conservation.diagnose import conservation


def pictures(*size: int) -> Tensor:
    return torch.randn(*(size or (2, 3, 11, 9)), dtype=torch.float64)


class LinearNorm(nn.Module):
    """A BatchNorm1d after a linear layer: over its features, or (three axes) over another axis than they are."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes
        self.linear = nn.Linear(9 if axes == 3 else 297, 6)
        self.norm = nn.BatchNorm1d(33 if axes == 3 else 6)
        self.head = nn.Linear(33 * 6 if axes == 3 else 6, 3)
        nets.initialise(self).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2) if self.axes == 3 else x.flatten(1)
        return self.head(F.relu(self.norm(self.linear(x))).flatten(1))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_linear_layer_and_batch_norm(axes: int, epsilon: float) -> None:
    net, images = LinearNorm(axes), pictures()
    decoder = HeatmapDecoder(net, composite_kwargs={"epsilon": epsilon})
    if not epsilon:
        torch.testing.assert_close(decoder(images).heatmaps, input_x_gradient(net, images), rtol=1e-12, atol=1e-13)
    assert all(b.missing.abs().max() < 1e-12 for b in conservation(decoder, images))
