"""Numbers computed from sizes by Python, NumPy or a table: the trace has the classifier's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.errors import TraceError
from tw_seg.lrp import HeatmapDecoder

NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "np.prod": lambda x: np.prod(x.shape[2:]),
    "np.sqrt": lambda x: np.sqrt(x.shape[2]),
    "np.log2": lambda x: np.log2(x.size(2)),
    "np.array": lambda x: float(np.array(x.shape[1:]).sum()),
    "math.prod": lambda x: math.prod(x.shape[2:]),
    "numel of a part": lambda x: x.shape[2:].numel(),
    "numel of a size": lambda x: x.size().numel() / x.shape[0],
    "tensor of a size": lambda x: torch.tensor(x.shape[2:]).prod(),
    "nelement": lambda x: x.nelement() / x.shape[0],
    "element_size": lambda x: x.element_size(),
    "itemsize": lambda x: x.itemsize,
    "nbytes": lambda x: x.nbytes / x.shape[0],
    "table": lambda x: {9: 2.0, 8: 3.0}.get(x.shape[2], 5.0),
    "table of pairs": lambda x: {(9, 9): 2.0}.get((x.shape[2], x.shape[3]), 5.0),
    "table of types": lambda x: {torch.float64: 2.0}.get(x.dtype, 5.0),
    "set": lambda x: 2.0 if x.shape[2] in {9, 10} else 3.0,
    "computed key": lambda x: {3: 2.0, 4: 3.0}.get(x.shape[2] // 3, 5.0),
}


class Net(nn.Module):
    def __init__(self, number: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.head, self.number = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3), number

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.head(x.sum((2, 3)) / self.number(x))


def check(net: nn.Module) -> None:
    """Logits are the net's own and heatmaps input x gradient, for images of two sizes."""
    net = net.double().eval()
    decoder = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}).eval()
    for size in ((9, 9), (12, 10)):
        images = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
        logits, heatmaps, _ = decoder(images)
        expected = net(images)
        torch.testing.assert_close(logits, expected)
        (gradient,) = torch.autograd.grad(expected[:, 1].sum(), images)
        torch.testing.assert_close(heatmaps[:, 1], (images * gradient).sum(1))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_from_sizes(name: str) -> None:
    torch.manual_seed(0)
    check(Net(NUMBERS[name]))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.lp_pool2d(x, 2, x.shape[2] // 2).mean((2, 3)),
        lambda x: F.lp_pool2d(x, 2, x.shape[2:]).flatten(1),
        lambda x: F.lp_pool2d(x, 2, (x.shape[2] // 2, 2), stride=x.shape[3] // 3).mean((2, 3)),
        lambda x: torch.tensordot(x.mean((2, 3)), x.new_ones(4, 4), x.ndim - 3),
    ],
)
def test_options_from_sizes_of_what_is_written_in_others(pool: Callable[[Tensor], Tensor]) -> None:
    class Pooled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(pool(self.conv(x).relu()))

    check(Pooled(len))


def test_a_table_that_lacks_the_usual_size_needs_the_image_size() -> None:
    net = Net(lambda x: {9: 2.0}[x.shape[2]]).eval()
    with pytest.raises(TraceError, match="cannot be traced"):
        HeatmapDecoder(net)
    images = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(HeatmapDecoder(net, image_size=(9, 9)).eval()(images).logits, net(images))


def test_a_number_of_images_is_no_key() -> None:
    with pytest.raises(TraceError, match="the forward branches on the batch size"):
        HeatmapDecoder(Net(lambda x: {2: 2.0}.get(x.shape[0], 5.0)))
