"""Heatmaps of a vision transformer equal AttnLRP (Achtibat et al. 2024) in closed form.

In preset ``epsilon`` the epsilon is that of linear layers, convolutions and products of matrices (added to twice the
product, as in the paper); sums, LayerNorm and softmax have none.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.attnlrp import Detached, relevance, transformer
from tests.oracles.gradients import input_x_gradient
from tw_seg.lrp import HeatmapDecoder


def example(samples: int = 2) -> Tensor:
    return torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest value of an image and class."""
    return float(((found - expected).abs().amax((2, 3)) / expected.abs().amax((2, 3))).max())


def test_references_compute_the_transformer() -> None:
    net, images = transformer(), example()
    torch.testing.assert_close(Detached(net)(images), net(images), rtol=1e-12, atol=1e-12)


def test_references_agree() -> None:
    net, images = transformer(), example()
    assert deviation(relevance(net, images, 0.0), input_x_gradient(Detached(net), images)) < 1e-10


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 1e-1])
def test_heatmaps(epsilon: float) -> None:
    net, images = transformer(), example()
    found = HeatmapDecoder(net, composite="epsilon", composite_kwargs={"epsilon": epsilon})(images).heatmaps
    assert deviation(found.detach(), relevance(net, images, epsilon)) < 1e-10


def test_the_rules_matter() -> None:
    # A reference that plain input x gradient, or another epsilon, passes would prove nothing.
    net, images = transformer(), example()
    expected = relevance(net, images, 1e-3)
    assert deviation(input_x_gradient(net, images), expected) > 1e-2
    assert deviation(relevance(net, images, 0.0), expected) > 1e-4
