"""Heatmaps stay finite on images that nets do not expect, under every preset, in float32 and bfloat16."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.oracles import nets
from tests.oracles.attnlrp import transformer
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.composite import COMPOSITES

BOUNDS = {"low": -1e30, "high": 1e30}
SIZES = {"tiny": (17, 19), "transformer": (16, 16)}


@cache
def decoder(net: str, composite: str, dtype: torch.dtype) -> HeatmapDecoder:
    classifier: nn.Module = nets.tiny() if net == "tiny" else transformer()
    kwargs = BOUNDS if "box" in composite else {}
    return HeatmapDecoder(copy.deepcopy(classifier).to(dtype), composite, composite_kwargs=kwargs).eval()


def images(kind: str, magnitude: float, seed: int, size: tuple[int, int]) -> Tensor:
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    patterns = {
        "zeros": torch.zeros_like(noise),
        "equal": torch.full_like(noise, magnitude),
        "noise": noise * magnitude,
        "one pixel": torch.zeros_like(noise).index_fill(3, torch.tensor([seed % size[1]]), magnitude),
        "signs": noise.sign() * magnitude,
    }
    return patterns[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("net", SIZES)
@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["zeros", "equal", "noise", "one pixel", "signs"]),
    magnitude=st.sampled_from([1e-45, 1e-38, 1e-20, 1e-6, 1.0, 255.0, 1e4, 1e8]),
    seed=st.integers(0, 5),
)
def test_finite(net: str, composite: str, dtype: torch.dtype, kind: str, magnitude: float, seed: int) -> None:
    pictures = images(kind, magnitude, seed, SIZES[net]).to(dtype)
    with torch.no_grad():
        decoded = decoder(net, composite, dtype)(pictures)
    assert decoded.logits.isfinite().all()
    assert decoded.heatmaps.isfinite().all()
