"""The epsilon rule equals captum's LRP, in value, on a sequential net; captum's epsilon is fixed at 1e-9."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LRP
from torch import Tensor, nn

from tests.oracles.nets import initialise
from tw_seg.lrp import HeatmapDecoder


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))  # captum knows no Flatten module


# captum's own notice: its attributions set requires_grad on the images
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning")
def test_sequential_net() -> None:
    net = initialise(Net()).double().eval()
    images = torch.randn(2, 3, 17, 15, dtype=torch.float64)
    decoder = HeatmapDecoder(net, composite_kwargs={"epsilon": 1e-9})
    found = decoder(images).heatmaps.detach()
    for k in range(3):
        expected = LRP(net).attribute(images, target=k).sum(1).detach()
        assert float((found[:, k] - expected).abs().max() / expected.abs().max()) < 1e-7
