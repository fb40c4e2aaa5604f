"""Convolutions and linear layers: heatmaps are input x gradient in one, two and three dimensions, in every spelling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import SIZES, Case, check, spellings

CONVS = {
    **{
        f"conv{dims}d {name}": Case(lambda s, x: s.c(s.a(x)), size=SIZES[dims], modules=make)
        for dims, module in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d))
        for name, make in {
            "stride": lambda m=module: {"c": m(4, 6, 3, 2, 1)},
            "rest": lambda m=module: {"c": m(4, 2, 2, 3)},
            "dilation": lambda m=module: {"c": m(4, 6, 3, 1, 2, 2, 2)},
            "depthwise": lambda m=module: {"c": m(4, 4, 3, groups=4, bias=False, padding=1)},
            "same": lambda m=module: {"c": m(4, 2, 3, padding="same", dilation=2)},
            "same even": lambda m=module: {"c": m(4, 2, 4, padding="same")},
            "valid": lambda m=module: {"c": m(4, 2, 2, padding="valid")},
        }.items()
    },
    "conv2d uneven": Case(lambda s, x: s.c(s.a(x)), modules=lambda: {"c": nn.Conv2d(4, 2, (1, 4), (2, 3), (0, 2))}),
    **spellings(
        "conv function",
        lambda s, x: F.conv2d(s.a(x), s.c.weight, s.c.bias, 2, 1, 1, 2),
        lambda s, x: F.conv2d(s.a(x), s.c.weight, bias=s.c.bias, stride=(2, 1), padding=(1, 0), groups=2),
        lambda s, x: torch.conv2d(input=s.a(x), weight=s.c.weight, padding="same", groups=2),
        lambda s, x: torch.conv2d(s.a(x), torch.tanh(s.c.weight) * 2, None, groups=2),
        modules=lambda: {"c": nn.Conv2d(4, 6, 3, groups=2)},
    ),
    "conv1d function": Case(lambda s, x: F.conv1d(s.a(x), s.a.weight[:, :2], None, 2, 1, groups=2), size=SIZES[1]),
    "conv3d function": Case(lambda s, x: F.conv3d(s.a(x), s.a.weight[:, :2], s.a.bias, 2, 1, groups=2), size=SIZES[3]),
}

TRANSPOSED = {
    **{
        f"conv_transpose{dims}d {name}": Case(lambda s, x: s.c(s.a(x)), size=SIZES[dims], modules=make)
        for dims, module in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d))
        for name, make in {
            "stride": lambda m=module: {"c": m(4, 2, 2, 2)},
            "output padding": lambda m=module: {"c": m(4, 2, 3, 2, 1, 1, bias=False)},
            "dilation": lambda m=module: {"c": m(4, 6, 3, 2, 2, 1, 2, dilation=2)},
            "output padding within the dilation": lambda m=module: {"c": m(4, 2, 2, 1, output_padding=1, dilation=3)},
        }.items()
    },
    "conv_transpose2d output size": Case(
        lambda s, x: s.c(s.a(x), output_size=(12, 15)), modules=lambda: {"c": nn.ConvTranspose2d(4, 2, 3, 2, 1)}
    ),
    **spellings(
        "conv_transpose function",
        lambda s, x: F.conv_transpose2d(s.a(x), s.c.weight, s.c.bias, 2, 1, 1, 2),
        lambda s, x: F.conv_transpose2d(s.a(x), s.c.weight, stride=(1, 2), output_padding=(0, 1), groups=2),
        modules=lambda: {"c": nn.ConvTranspose2d(4, 6, 3, groups=2)},
    ),
    "conv_transpose1d function": Case(
        lambda s, x: F.conv_transpose1d(s.a(x), s.c, None, 2), size=SIZES[1],
        modules=lambda: {"c": nn.Parameter(torch.zeros(4, 2, 3))},
    ),
    "conv_transpose3d function": Case(
        lambda s, x: F.conv_transpose3d(s.a(x), s.c, None, 2, dilation=2), size=SIZES[3],
        modules=lambda: {"c": nn.Parameter(torch.zeros(4, 2, 1, 2, 1))},
    ),
}  # fmt: skip

LINEARS = {
    **spellings(
        "linear",
        lambda s, x: s.l(s.a(x)),
        lambda s, x: s.l(s.a(x).flatten(2)[..., :8]),
        lambda s, x: s.l(s.a(x)[:, :, 0].flatten(0, 1)).view(x.shape[0], -1),
        lambda s, x: F.linear(s.a(x), s.l.weight),
        lambda s, x: F.linear(input=s.a(x), weight=s.l.weight, bias=s.l.bias),
        lambda s, x: s.q(s.a(x)),
        lambda s, x: s.l(s.a(x).transpose(0, 2)).transpose(0, 2),
        modules=lambda: {"l": nn.Linear(8, 5), "q": nn.modules.linear.NonDynamicallyQuantizableLinear(8, 5)},
    ),
}


CASES = {**CONVS, **TRANSPOSED, **LINEARS}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's advice
def test_linear(name: str) -> None:
    check(CASES[name])
