"""Pools and reductions: averages are linear maps, relevance of maxima goes to the winners."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import SIZES, Case, build, check, close, spellings
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder

AVERAGES = {
    **{
        f"avg_pool{dims}d {name}": Case(body, size=SIZES[dims], modules=modules)
        for dims, module, function in (
            (1, nn.AvgPool1d, F.avg_pool1d), (2, nn.AvgPool2d, F.avg_pool2d), (3, nn.AvgPool3d, F.avg_pool3d),
        )
        for name, body, modules in (
            ("module", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(2)}),
            ("ceil", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3, 2, 1, True, False)}),
            ("counted", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3, 2, 1, True)}),
            ("function", lambda s, x, f=function: f(s.a(x), 3, 1), dict),
            ("keywords", lambda s, x, f=function: f(s.a(x), kernel_size=[3], stride=2, padding=1), dict),
        )
    },
    "avg_pool2d divisor": Case(lambda s, x: F.avg_pool2d(s.a(x), (2, 3), divisor_override=5)),
    "avg_pool3d divisor": Case(lambda s, x: F.avg_pool3d(s.a(x), 2, None, 0, False, True, 3), size=SIZES[3]),
    "avg_pool2d uneven": Case(lambda s, x: F.avg_pool2d(s.a(x), (1, 3), (1, 2), (0, 1), count_include_pad=False)),
    **{
        f"adaptive_avg_pool{dims}d {name}": Case(body, size=SIZES[dims], modules=modules)
        for dims, module, function in (
            (1, nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d), (2, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
            (3, nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d),
        )
        for name, body, modules in (
            ("one", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(1)}),
            ("odd", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(5)}),
            ("function", lambda s, x, f=function: f(s.a(x), 3), dict),
            ("keyword", lambda s, x, f=function: f(s.a(x), output_size=7), dict),
        )
    },
    "adaptive_avg_pool2d None": Case(lambda s, x: s.p(s.a(x)), modules=lambda: {"p": nn.AdaptiveAvgPool2d((None, 3))}),
    "adaptive_avg_pool2d uneven": Case(lambda s, x: F.adaptive_avg_pool2d(s.a(x), (4, 11))),
}  # fmt: skip

REDUCTIONS = {
    f"{name} {key}": Case(lambda s, x, f=function, b=body: b(f, s.a(x)))
    for name, functions in {
        "mean": (torch.mean, lambda y, *args, **kwargs: y.mean(*args, **kwargs)),
        "sum": (lambda y, *args, **kwargs: y.sum(*args, **kwargs), torch.sum),
    }.items()
    for number, (key, body) in enumerate(
        {
            "one": lambda f, y: f(y, 1),
            "negative": lambda f, y: f(y, -1),
            "several": lambda f, y: f(y, (2, 3)),
            "mixed": lambda f, y: f(y, dim=[-1, 1]),
            "kept": lambda f, y: f(y, (-2, -1), True) + y,
            "keyword": lambda f, y: y + f(y, dim=1, keepdim=True),
            "numpy": lambda f, y: y + f(y, axis=(1, -1), keepdims=True),
            "to nothing": lambda f, y: f(y, (1, 2, 3)).unsqueeze(1),
        }.items()
    )
    for function in (functions[number % 2],)  # what is a function for the mean is a method for the sum
}  # fmt: skip

MAX = {
    f"max_pool{dims}d {name}": Case(body, size=SIZES[dims], modules=modules)
    for dims, module, function, other in (
        (1, nn.MaxPool1d, F.max_pool1d, torch.max_pool1d),
        (2, nn.MaxPool2d, F.max_pool2d, torch.max_pool2d),
        (3, nn.MaxPool3d, F.max_pool3d, torch.max_pool3d),
    )
    for name, body, modules in (
        ("module", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(2)}),
        ("overlap", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3, 2, 1)}),
        ("ceil", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(2, 2, 1, 2, ceil_mode=True)}),
        ("stride 1", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3, stride=1, padding=1)}),
        ("function", lambda s, x, f=function: f(s.a(x), 3, 2, 1), dict),
        ("keywords", lambda s, x, f=function: f(s.a(x), kernel_size=2, stride=1, dilation=2, ceil_mode=True), dict),
        ("default stride", lambda s, x, f=function: f(input=s.a(x), kernel_size=2), dict),
        ("torch's", lambda s, x, f=other: f(s.a(x), 3, 1, 1, 1, True), dict),
    )
}
ADAPTIVE = {
    f"adaptive_max_pool{dims}d {name}": Case(body, size=SIZES[dims], modules=modules)
    for dims, module, function in (
        (1, nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d),
        (2, nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d),
        (3, nn.AdaptiveMaxPool3d, F.adaptive_max_pool3d),
    )
    for name, body, modules in (
        ("one", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(1)}),
        ("odd", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3)}),
        ("function", lambda s, x, f=function: f(s.a(x), 5), dict),
        ("keyword", lambda s, x, f=function: f(s.a(x), output_size=7), dict),
    )
}
UNEVEN = {
    "max_pool2d uneven": Case(lambda s, x: F.max_pool2d(s.a(x), (1, 3), (1, 2), (0, 1))),
    "adaptive_max_pool2d uneven": Case(lambda s, x: F.adaptive_max_pool2d(s.a(x), (4, 11))),
    "adaptive_max_pool2d None": Case(lambda s, x: s.p(s.a(x)), modules=lambda: {"p": nn.AdaptiveMaxPool2d((None, 3))}),
}
AMAX = spellings(
    "amax",
    lambda s, x: torch.amax(s.a(x), 1),
    lambda s, x: torch.amax(s.a(x), dim=(-1, -2), keepdim=True),
    lambda s, x: torch.amax(input=s.a(x), dim=[1, 3]),
    lambda s, x: s.a(x).amax(-1),
    lambda s, x: s.a(x).amax((1, 2), True),
    lambda s, x: s.a(x) + s.a(x).amax(dim=1, keepdim=True),
    lambda s, x: s.a(x).permute(1, 2, 0, 3).amax((0, 3)).transpose(0, 1),
)
VALUES = spellings(
    "max",
    lambda s, x: s.a(x).max(1)[0],
    lambda s, x: torch.max(s.a(x), dim=-1, keepdim=True).values,
    lambda s, x: torch.max(s.a(x), s.a(x).flip(2)),
    lambda s, x: (lambda pair: pair[0])(s.a(x).max(dim=2)),
    lambda s, x: s.a(x).permute(1, 2, 0, 3).max(0).values.transpose(0, 1),
)
CASES = {**AVERAGES, **REDUCTIONS, **MAX, **ADAPTIVE, **UNEVEN, **AMAX, **VALUES}


@pytest.mark.parametrize("name", CASES)
def test_pool(name: str) -> None:
    check(CASES[name])


def test_ties_are_won_once() -> None:
    """A plane of equal values: relevance is conserved, by pools and by amax."""
    for body in (lambda s, x: F.max_pool2d(s.a(x), 3, 2, 1), lambda s, x: s.a(x).amax((2, 3))):
        net, _ = build(Case(body))
        torch.nn.init.zeros_(net.a.weight)
        images = torch.ones(1, 3, 6, 8, dtype=torch.float64)
        decoder = HeatmapDecoder(net, read_out="a").eval()
        decoded = decoder(images)
        close(decoded.heatmaps.sum((2, 3)), decoded.logits - net.head.bias)


REFUSED = {
    "over the batch": (lambda s, x: s.a(x).amax((0, 1)).unsqueeze(0), "mixes the images"),
    "pool of another batch axis": (lambda s, x: F.max_pool2d(s.a(x).transpose(0, 1), 2).transpose(0, 1), "at axis 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    body, message = REFUSED[name]
    net, images = build(Case(body))
    with pytest.raises(UnsupportedOpError, match=message):
        HeatmapDecoder(net)(images)
