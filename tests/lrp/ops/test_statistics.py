"""Lengths, deviations and roots as features get relevance; as divisors and scales they are constants, as before."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.lrp.ops.harness import Case, build, check, close, spellings
from tests.oracles.gradients import input_x_gradient
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


def modules():
    return {"b": nn.Conv2d(3, 4, 3, padding=1), "p": nn.Parameter(torch.zeros(4, 1, 1))}


NORM = spellings(
    "norm",
    lambda s, x: torch.norm(s.a(x), dim=1),
    lambda s, x: torch.norm(s.a(x), 3, (2, 3), True),
    lambda s, x: s.a(x).norm(dim=-1),
    lambda s, x: s.a(x).norm(p=1, dim=(1, 2)),
    lambda s, x: torch.linalg.norm(s.a(x), dim=(2, 3)),
    lambda s, x: torch.linalg.norm(s.a(x), ord=2, dim=2),
    lambda s, x: torch.linalg.vector_norm(s.a(x), dim=(1, 3), keepdim=True),
    lambda s, x: torch.linalg.vector_norm(s.a(x), ord=math.inf, dim=(2, 3)),
    lambda s, x: torch.linalg.vector_norm(s.a(x), 1.5, 1),
    lambda s, x: s.a(x).transpose(0, 1).norm(dim=2).transpose(0, 1),
    lambda s, x: s.a(x).norm(dim=1) + s.b(x).mean(1),
)
NORM = {name: Case(case.body, modules=modules) for name, case in NORM.items()}
SPREAD = {
    **spellings(
        "std",
        lambda s, x: torch.std(s.a(x), 1),
        lambda s, x: s.a(x).std((2, 3)),
        lambda s, x: s.a(x).std((1, 2), False, True),
        lambda s, x: s.a(x).std(dim=2, correction=0),
        lambda s, x: torch.cat([s.a(x).mean((2, 3)), s.a(x).std((2, 3))], 1),
        lambda s, x: (lambda pair: pair[0] + pair[1])(torch.std_mean(s.a(x), (2, 3))),
    ),
    **{
        f"var {i}": Case(body, lambda s, x, body=body: body(s, x) - (body(s, x) / 2 - (body(s, x) / 2).detach()))
        for i, body in enumerate(
            (
                lambda s, x: torch.var(s.a(x), 1),
                lambda s, x: s.a(x).var((2, 3), keepdim=True),
                lambda s, x: s.a(x).var((1, 2), correction=2),
                lambda s, x: torch.var_mean(s.a(x), (2, 3), unbiased=False)[0],
            )
        )
    },
}
ROOT = {
    "sqrt": Case(
        lambda s, x: torch.sqrt(s.a(x).abs()), lambda s, x: (lambda u: u * (u.sqrt() / u).detach())(s.a(x).abs())
    ),
    "Tensor.sqrt": Case(
        lambda s, x: (s.a(x).abs() + 0.1).sqrt(),
        lambda s, x: (lambda u: u * (u.sqrt() / u).detach())(s.a(x).abs() + 0.1)
    ),
    "rsqrt": Case(lambda s, x: torch.rsqrt(s.a(x).abs() + 0.5)),
    "Tensor.rsqrt": Case(lambda s, x: (s.a(x).abs() + 0.5).rsqrt()),
}  # fmt: skip
SCALE = {
    "response normalisation on one pixel": Case(
        lambda s, x: (lambda u: u * (u.norm(dim=(2, 3), keepdim=True) / (u.norm(dim=(2, 3), keepdim=True).mean(1, True)
                                                                          + 1e-6)))(s.a(x).mean((2, 3), True)),
        lambda s, x: (lambda u: u * (u.norm(dim=(2, 3), keepdim=True) / (u.norm(dim=(2, 3), keepdim=True).mean(1, True)
                                                                          + 1e-6)).detach())(s.a(x).mean((2, 3), True)),
    ),
    "scale of its own size": Case(
        lambda s, x: s.b(x) * torch.rsqrt(s.a(x).square() + 0.3), lambda s, x: s.b(x) * torch.rsqrt(
            s.a(x).square() + 0.3).detach(), modules=modules
    ),
    "the length as a divisor and as a feature": Case(
        lambda s, x: (lambda u, n: torch.cat([u / n, n], 1))(s.a(x), s.a(x).norm(dim=1, keepdim=True)),
        lambda s, x: (lambda u, n: torch.cat([u / n.detach(), n], 1))(s.a(x), s.a(x).norm(dim=1, keepdim=True)),
    ),
}  # fmt: skip
CASES = {**NORM, **SPREAD, **ROOT, **SCALE}


@pytest.mark.parametrize("name", CASES)
def test_statistics(name: str) -> None:
    check(CASES[name])


def test_the_distance_to_prototypes() -> None:
    """Logits that are lengths: all of them is relevance of what is compared."""
    torch.manual_seed(0)
    conv, places = nn.Conv2d(3, 8, 3, padding=1).double(), torch.randn(4, 8, dtype=torch.float64)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.places = conv, nn.Parameter(places)

        def forward(self, x):
            return -torch.norm(self.conv(x).mean((2, 3)).unsqueeze(1) - self.places, dim=-1)

    net, images = Net().eval(), torch.randn(2, 3, 6, 8, dtype=torch.float64)
    found = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}).eval()(images)
    close(found.heatmaps, input_x_gradient(net, images))


def test_roots_and_lengths_of_nothing() -> None:
    """Where all elements are 0 the slope is not finite; they get no relevance."""
    net, images = build(
        Case(lambda s, x: torch.cat([(y := s.a(x).relu() * 0).sqrt(), y + y.norm(dim=1, keepdim=True)], 1))
    )
    assert not HeatmapDecoder(net).eval()(images).heatmaps.any()


REFUSED = {
    "of a matrix": lambda s, x: torch.linalg.norm(s.a(x), ord=2, dim=(2, 3)),
    "of order 0": lambda s, x: torch.linalg.vector_norm(s.a(x), 0, 1),
    "over every axis": lambda s, x: s.a(x) + s.a(x).norm(),
    "variance over every axis": lambda s, x: s.a(x) + s.a(x).var(False),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    net, _ = build(Case(REFUSED[name]))
    with pytest.raises(UnsupportedOpError, match="norm|var"):
        HeatmapDecoder(net)


def test_a_divisor_may_mix_images() -> None:
    """It is a constant, whatever it is made of."""
    net, images = build(Case(lambda s, x: s.a(x) / s.a(x).norm()))
    expected = input_x_gradient(lambda x: net.head((net.a(x) / net.a(images).norm().detach()).flatten(1)), images)
    close(HeatmapDecoder(net).eval()(images).heatmaps, expected)
