"""Fixtures of the model tests."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def quick_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large layers begin with a block of random numbers over and over: drawing 120 million takes seconds."""
    for name in ("normal_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_"):
        draw = getattr(nn.init, name)

        def fill(tensor: Tensor, *args: Any, draw: Any = draw, **kwargs: Any) -> Tensor:
            if tensor.numel() < 10**6:
                drawn: Tensor = draw(tensor, *args, **kwargs)
                return drawn
            block = torch.randn(10_007) * math.sqrt(2 / tensor[0].numel())  # a prime: no two rows are the same
            with torch.no_grad():
                return tensor.copy_(block.repeat(-(-tensor.numel() // len(block)))[: tensor.numel()].view_as(tensor))

        monkeypatch.setattr(nn.init, name, fill)


@pytest.fixture
def zero_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer begins with zeros, where a test loads other numbers into all of them."""
    for name in ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor.detach().zero_())
    for name in ("normal_", "uniform_", "erfinv_"):  # in the libraries' own initialisation
        monkeypatch.setattr(Tensor, name, lambda tensor, *args, **kwargs: tensor.detach().zero_())
