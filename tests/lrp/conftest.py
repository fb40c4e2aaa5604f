"""Nets that are expensive to make are made once."""

from __future__ import annotations

from functools import cache

import pytest
from torch import Tensor, nn

from tests.oracles import nets
from tw_seg.lrp import HeatmapDecoder


@cache
def _classifier(name: str) -> nn.Module:
    return nets.create(name)


@pytest.fixture(params=nets.NAMES)
def standard(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A standard classifier in evaluation mode with its images; do not change it."""
    return _classifier(request.param), nets.images(request.param)


@pytest.fixture(params=["resnet18", "vgg11_bn", "resnet10t"])
def quick(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """The same, fewer of them."""
    return _classifier(request.param), nets.images(request.param)


@pytest.fixture
def tiny() -> nets.Tiny:
    return nets.tiny()


@pytest.fixture
def decoder(tiny: nets.Tiny) -> HeatmapDecoder:
    """The decoder of a small net, in evaluation mode."""
    return HeatmapDecoder(tiny).eval()
