"""Rules of the user for a module class, a function or a method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from tests.lrp.ops.harness import Case, build, check
from tw_seg.errors import InputError, UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


class Cube(nn.Module):
    """A module that the package does not know; what it is made of is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.expit(x * 0) * 2 * self.scale * x * x * x


def cube(c, inputs, output, module):
    return c * module.scale * inputs[0] ** 2


@fx.wrap
def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    return torch.lerp(a, b, share)


def blended(c, inputs, output, module):
    assert module is None and output.shape == c.shape
    return 0.75 * c, 0.25 * c


@fx.wrap
def gated(a: Tensor, b: Tensor) -> Tensor:
    return a * torch.erf(b)


def running_sum(c, inputs, output, module):
    return c.flip(1).cumsum(1).flip(1)


def ratio(c, inputs, output, module):
    return c * output / inputs[0]


def modules():
    return {"b": nn.Conv2d(3, 4, 3, padding=1), "cube": Cube(), "sigmoid": nn.Sigmoid()}


CASES = {
    "module": Case(
        lambda s, x: s.cube(s.a(x)),
        lambda s, x: (lambda u: u * (s.cube.scale * u**2).detach())(s.a(x)),
        modules=modules, custom_rules={Cube: cube},
    ),
    "function": Case(lambda s, x: blend(s.a(x), s.b(x), 0.25), modules=modules, custom_rules={blend: blended}),
    "function of one value twice": Case(
        lambda s, x: (lambda y: blend(y, y, 0.25))(s.a(x)), modules=modules, custom_rules={blend: blended}
    ),
    "function, nothing to one input": Case(
        lambda s, x: gated(s.a(x), s.b(x)), lambda s, x: s.a(x) * torch.erf(s.b(x)).detach(), modules=modules,
        custom_rules={gated: lambda c, inputs, output, module: (c * torch.erf(inputs[1]), None)},
    ),
    "method": Case(lambda s, x: s.a(x).cumsum(1), modules=modules, custom_rules={"cumsum": running_sum}),
    "torch's function": Case(
        lambda s, x: torch.cumsum(s.a(x), 1), modules=modules, custom_rules={torch.cumsum: running_sum}
    ),
    "on another batch axis": Case(
        lambda s, x: s.cube(s.a(x).transpose(0, 1)).transpose(0, 1),
        lambda s, x: (lambda u: u * (s.cube.scale * u**2).detach())(s.a(x)),
        modules=modules, custom_rules={Cube: cube},
    ),
    "instead of the package's rule": Case(
        lambda s, x: s.sigmoid(s.a(x)) + torch.sigmoid(s.b(x)),
        lambda s, x: (lambda u: u * (torch.sigmoid(u) / u).detach())(s.a(x)) + torch.sigmoid(s.b(x)),
        modules=modules, custom_rules={nn.Sigmoid: ratio},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_custom_rule(name: str) -> None:
    check(CASES[name])


WRONG = {
    "too few coefficients": (lambda c, *_: c, "returned 1 coefficients for 2 inputs"),
    "too many coefficients": (lambda c, *_: (c, c, c), "returned 3 coefficients for 2 inputs"),
    "samples only": (lambda c, *_: (c[:2], c), r"of shape \(2, 4, 6, 8\) for an input of shape \(6, 4, 6, 8\)"),
    "summed over channels": (lambda c, *_: (c, c.sum(1)), r"shape \(6, 6, 8\) for an input of shape \(6, 4, 6, 8\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_coefficients(name: str) -> None:
    rule, message = WRONG[name]
    net, images = build(CASES["function"])
    with pytest.raises(InputError, match=message):
        HeatmapDecoder(net, custom_rules={blend: rule}).eval()(images)


def test_without_the_rule_the_message_names_the_way_out() -> None:
    net, _ = build(CASES["function, nothing to one input"])
    with pytest.raises(UnsupportedOpError, match="custom_rules="):
        HeatmapDecoder(net)
