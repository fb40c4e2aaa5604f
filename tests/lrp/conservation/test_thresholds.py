"""What a threshold leaves out of the gradients is measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles import nets
from tests.oracles.gradients import gradients
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.conservation.thresholds import measure_gradient_threshold


def images() -> Tensor:
    return torch.randn(3, 3, 17, 19, dtype=torch.float64)


def test_the_error_of_a_threshold_is_reported() -> None:
    """Against gradients with everything that was left out set to zero by hand."""
    decoder, inputs = HeatmapDecoder(nets.tiny(classes=4)), images()
    parameters = [p for p in decoder.parameters() if p.requires_grad]
    weights = torch.tensor([1.0, 0.5, 0.01, 0.001]).double()

    def loss(heatmaps: tuple[Tensor, ...]) -> Tensor:
        return (heatmaps[0].sum((2, 3)) @ weights).sum()

    exact = torch.cat([g.flatten() for g in gradients(loss(decoder(inputs).readouts), parameters)])
    found = measure_gradient_threshold(decoder, inputs, loss, [0.0, 0.1, 0.7])
    for row, kept in zip(found, (4, 2, 1), strict=True):
        cut = torch.where(torch.arange(4) < kept, weights, 0)
        some = (decoder(inputs).heatmaps.sum((2, 3)) @ cut).sum()
        left = torch.cat([g.flatten() for g in gradients(some, parameters)])
        assert row.pairs == kept / 4
        assert row.error == pytest.approx(float((left - exact).norm() / exact.norm()), rel=1e-9, abs=1e-14)
