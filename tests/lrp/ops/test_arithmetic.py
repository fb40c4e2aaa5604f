"""Sums, products and quotients: half of the relevance to each of two factors, all of it to a gated signal."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import Case, build, check, close, spellings
from tests.oracles.gradients import input_x_gradient
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


def two():
    """A second convolution, a parameter that broadcasts, one of one image's size and a squeeze-and-excite branch."""
    return {
        "b": nn.Conv2d(3, 4, 3, padding=1),
        "p": nn.Parameter(torch.zeros(4, 1, 8)),
        "q": nn.Parameter(torch.zeros(1, 4, 6, 8)),
        "small": nn.Conv2d(4, 4, 1),
    }


def half(a, b):
    return (a.detach() * b + a * b.detach()) / 2


def gate(s, x):
    return torch.sigmoid(s.small(F.relu(s.a(x)).mean((2, 3), keepdim=True)))


ADD = spellings(
    "add",
    lambda s, x: s.a(x) + s.b(x),
    lambda s, x: operator.iadd(s.a(x), s.b(x)),
    lambda s, x: torch.add(s.a(x), s.b(x)),
    lambda s, x: torch.add(input=s.a(x), other=s.b(x), alpha=-0.7),
    lambda s, x: s.a(x).add(s.b(x), alpha=3),
    lambda s, x: s.a(x).add_(s.b(x)),
    lambda s, x: s.a(x).add_(s.b(x), alpha=0.3),
    lambda s, x: (lambda y: y + y)(s.a(x)),
    lambda s, x: (lambda y: torch.add(y, y, alpha=2))(s.a(x)),
    lambda s, x: sum([s.a(x), s.b(x), s.a(x)]),
    lambda s, x: s.a(x) + s.b(x).mean((2, 3), keepdim=True),
    lambda s, x: x.mean(1, keepdim=True) + s.a(x),
    lambda s, x: s.a(x).mean((2, 3), keepdim=True) + s.b(x).mean((1, 2), keepdim=True),
    lambda s, x: F.relu(1.5 + s.a(x)),
    lambda s, x: F.relu(s.a(x) + 2),
    lambda s, x: F.relu(s.p + s.a(x)),
    lambda s, x: F.relu(torch.add(s.q, s.a(x), alpha=0.5)),
    lambda s, x: F.relu(s.a(x) + torch.arange(8.0)),
    lambda s, x: F.relu(s.a(x).mean((2, 3)) + s.p[:, 0, :4].unsqueeze(1)).transpose(0, 1),
    modules=two,
)
SUB = spellings(
    "sub",
    lambda s, x: s.a(x) - s.b(x),
    lambda s, x: operator.isub(s.a(x), s.b(x)),
    lambda s, x: torch.sub(s.a(x), s.b(x), alpha=0.4),
    lambda s, x: torch.sub(s.a(x), other=s.p),
    lambda s, x: s.a(x).sub(s.b(x)),
    lambda s, x: s.a(x).sub_(s.b(x), alpha=2),
    lambda s, x: F.relu(1 - s.a(x)),
    lambda s, x: F.relu(s.a(x) - 1),
    lambda s, x: F.relu(s.q - s.a(x)),
    lambda s, x: (lambda y: y - y.mean(1, keepdim=True))(s.a(x)),
    modules=two,
)
NEG = spellings(
    "neg",
    lambda s, x: F.relu(-s.a(x)),
    lambda s, x: F.relu(torch.neg(s.a(x))),
    lambda s, x: F.relu(s.a(x).neg()),
)
SCALE = spellings(
    "mul by a constant",
    lambda s, x: 3 * s.a(x),
    lambda s, x: s.a(x) * s.p,
    lambda s, x: s.q * s.a(x),
    lambda s, x: torch.mul(s.a(x), s.p),
    lambda s, x: torch.mul(input=s.p, other=s.a(x)),
    lambda s, x: torch.multiply(s.a(x), 0.3),
    lambda s, x: s.a(x).mul(s.p),
    lambda s, x: s.a(x).mul_(2.5),
    lambda s, x: operator.imul(s.a(x), s.q),
    lambda s, x: s.a(x) * x.new_ones(x.size(0)).cumsum(0).view(-1, 1, 1, 1),
    lambda s, x: s.a(x).mean((2, 3), keepdim=True) * s.q,
    modules=two,
)
PRODUCT = {
    **spellings(
        "mul",
        lambda s, x: s.a(x) * s.b(x),
        lambda s, x: torch.mul(s.a(x), s.b(x)),
        lambda s, x: s.a(x).mul(s.b(x)),
        lambda s, x: s.a(x).mul_(s.b(x)),
        surrogate=lambda s, x: half(s.a(x), s.b(x)),
        modules=two,
    ),
    "mul itself": Case(
        lambda s, x: (lambda y: y * y)(s.a(x)), lambda s, x: (lambda y: y * y.detach())(s.a(x))
    ),
    **spellings(
        "mul sigmoid",
        lambda s, x: s.a(x) * torch.sigmoid(s.b(x)),
        lambda s, x: torch.sigmoid(s.b(x)) * s.a(x),
        lambda s, x: s.a(x) * s.b(x).sigmoid().view(x.size(0), 4, 6, 8).clone(),
        surrogate=lambda s, x: s.a(x) * torch.sigmoid(s.b(x)).detach(),
        modules=two,
    ),
    "mul two gates": Case(
        lambda s, x: torch.tanh(s.a(x)) * torch.sigmoid(s.b(x)),
        lambda s, x: half((lambda u: u * (torch.tanh(u) / u).detach())(s.a(x)), torch.sigmoid(s.b(x))), modules=two,
    ),
    **spellings(
        "mul squeeze and excite",
        lambda s, x: s.a(x) * gate(s, x),
        lambda s, x: gate(s, x) * s.a(x),
        lambda s, x: torch.mul(s.a(x), gate(s, x).expand(-1, -1, 6, 8)),
        surrogate=lambda s, x: s.a(x) * gate(s, x).detach(),
        modules=two,
    ),
    **spellings(
        "mul smaller",
        lambda s, x: s.a(x) * s.b(x).mean(1, keepdim=True),
        lambda s, x: s.b(x).mean(1, keepdim=True).mul(s.a(x)),
        surrogate=lambda s, x: s.a(x) * s.b(x).mean(1, keepdim=True).detach(),
        modules=two,
    ),
    "mul softmax": Case(
        lambda s, x: (s.a(x) * s.b(x).flatten(2).softmax(-1).view(-1, 4, 6, 8)).sum((2, 3)),
        lambda s, x: (s.a(x) * s.b(x).flatten(2).softmax(-1).view(-1, 4, 6, 8).detach()).sum((2, 3)), modules=two,
    ),
}  # fmt: skip
QUOTIENT = {
    **spellings(
        "div by a constant",
        lambda s, x: s.a(x) / 3,
        lambda s, x: torch.div(s.a(x), 3.5),
        lambda s, x: s.a(x).div(s.p.exp()),
        lambda s, x: s.a(x).div_(2),
        lambda s, x: operator.itruediv(s.a(x), s.q.exp()),
        lambda s, x: torch.div(input=s.a(x), other=s.p.abs() + 1),
        modules=two,
    ),
    "div": Case(
        lambda s, x: s.a(x) / (s.b(x).square() + 1), lambda s, x: s.a(x) / (s.b(x).square() + 1).detach(), modules=two
    ),
    **spellings(
        "div by the norm",
        lambda s, x: (lambda y: y / y.norm(dim=1, keepdim=True))(s.a(x)),
        lambda s, x: (lambda y: y / torch.linalg.vector_norm(y, dim=1, keepdim=True))(s.a(x)),
        lambda s, x: (lambda y: y / y.pow(2).sum(1, keepdim=True).sqrt())(s.a(x)),
        lambda s, x: (lambda y: y * torch.rsqrt(y.square().sum(1, keepdim=True)))(s.a(x)),
        lambda s, x: (lambda y: y / torch.norm(y, p=2, dim=1, keepdim=True))(s.a(x)),
        surrogate=lambda s, x: (lambda y: y / y.detach().norm(dim=1, keepdim=True))(s.a(x)),
    ),
    **spellings(
        "div by the deviation",
        lambda s, x: (lambda y: (y - y.mean(1, keepdim=True)) / torch.sqrt(y.var(1, keepdim=True) + 0.1))(s.a(x)),
        lambda s, x: (lambda y: (y - y.mean(1, True)) * (torch.var(y, 1, keepdim=True) + 0.1).rsqrt())(s.a(x)),
        surrogate=lambda s, x: (
            lambda y: (y - y.mean(1, keepdim=True)) / (y.detach().var(1, keepdim=True) + 0.1).sqrt()
        )(s.a(x)),
    ),
    "div by the standard deviation": Case(
        lambda s, x: (lambda y: y / (y.std(1, keepdim=True) + 0.1))(s.a(x)),
        lambda s, x: (lambda y: y / (y.detach().std(1, keepdim=True) + 0.1))(s.a(x)),
    ),
}
POWER = {
    **spellings(
        "pow 2",
        lambda s, x: s.a(x) ** 2,
        lambda s, x: torch.pow(s.a(x), 2),
        lambda s, x: s.a(x).pow(2),
        lambda s, x: s.a(x).pow(exponent=2.0),
        surrogate=lambda s, x: (lambda y: y * y.detach())(s.a(x)),
    ),
    "pow 1.5": Case(
        lambda s, x: s.a(x).abs().add(0.1).pow(1.5),
        lambda s, x: (lambda y: y * y.detach().sqrt())((lambda u: u * u.detach().sign())(s.a(x)) + 0.1),
    ),
}
POWER["pow with a parameter"] = Case(
    lambda s, x: s.a(x).abs().add(0.1) ** (s.p + 2),
    lambda s, x: (lambda y: y * y.detach() ** (s.p + 1))((lambda u: u * u.detach().sign())(s.a(x)) + 0.1),
    modules=two,
)
ADDCMUL = spellings(
    "addcmul",
    lambda s, x: torch.addcmul(s.a(x), s.p, s.b(x)),
    lambda s, x: torch.addcmul(s.a(x), s.b(x), s.p, value=0.3),
    lambda s, x: F.relu(torch.addcmul(s.q, s.b(x), s.p, value=2)),
    lambda s, x: F.relu(torch.addcmul(s.a(x), s.q, s.p)),
    lambda s, x: torch.addcmul(input=s.a(x).mean((2, 3), keepdim=True), tensor1=s.b(x), tensor2=s.p),
    modules=two,
)
EXTREME = spellings(
    "extreme",
    lambda s, x: torch.maximum(s.a(x), s.b(x)),
    lambda s, x: torch.minimum(s.a(x), s.b(x)),
    lambda s, x: torch.maximum(s.a(x), s.p),
    lambda s, x: torch.minimum(input=s.q, other=s.a(x)),
    lambda s, x: torch.maximum(s.a(x).mean(1, keepdim=True), s.b(x)),
    modules=two,
)


def stochastic_depth(s, x):
    """As timm's drop_path and torchvision's StochasticDepth draw it."""
    y = s.a(x)
    if s.training:
        mask = y.new_empty((y.shape[0], 1, 1, 1)).bernoulli_(0.5)
        mask.div_(0.5)
        y = y * mask
    return y + s.b(x)


DRAWN = {
    "stochastic depth": Case(stochastic_depth, size=(6, 3, 6, 8), modules=two, training=True),
    "stochastic depth in evaluation": Case(stochastic_depth, modules=two),
    "noise": Case(lambda s, x: s.a(x) * (1 + torch.randn_like(s.b(x))) + torch.rand_like(x)[:, :1], modules=two,
                  training=True),
}  # fmt: skip

CASES = {**ADD, **SUB, **NEG, **SCALE, **PRODUCT, **QUOTIENT, **POWER, **ADDCMUL, **EXTREME, **DRAWN}


@pytest.mark.parametrize("name", CASES)
def test_arithmetic(name: str) -> None:
    check(CASES[name])


def test_decoding_follows_the_draw() -> None:
    """A branch that is dropped gets no relevance."""
    case = Case(stochastic_depth, size=(16, 3, 6, 8), modules=two, training=True)
    net, images = build(case)
    torch.manual_seed(5)
    keep = torch.empty(16, 1, 1, 1, dtype=torch.float64).bernoulli_(0.5)
    assert 0 < keep.sum() < 16
    expected = input_x_gradient(lambda x: net.head((net.a(x) * 2 * keep + net.b(x)).flatten(1)), images)
    decoder = HeatmapDecoder(net)
    torch.manual_seed(5)
    close(decoder(images).heatmaps, expected)


@pytest.mark.parametrize("epsilon", [0.5])
@pytest.mark.parametrize(("kind", "sign"), [("add", 1), ("sub", -1)])
def test_a_sum_with_a_stabiliser(epsilon: float, kind: str, sign: int) -> None:
    """``R_i = a_i z_i / (z + eps sign z)``, the epsilon rule of a sum."""
    net, images = build(Case(lambda s, x: s.a(x) + sign * s.b(x) if sign > 0 else s.a(x) - s.b(x), modules=two))
    overrides = [{"rule": "epsilon", "epsilon": epsilon, "kinds": [kind]}]
    found = HeatmapDecoder(net, composite_kwargs={"overrides": overrides}).eval()(images).heatmaps
    z = net.a(images) + sign * net.b(images)
    share = (z / torch.where(z < 0, z - epsilon, z + epsilon)).detach()
    expected = input_x_gradient(lambda x: net.head(((net.a(x) + sign * net.b(x)) * share).flatten(1)), images)
    close(found, expected)


REFUSED = {
    "pow with a value": lambda s, x: s.a(x) ** s.b(x),
    "pow of a number": lambda s, x: torch.pow(2, s.a(x)),
    "div of a constant": lambda s, x: 1 / s.a(x),
    "three values": lambda s, x: torch.addcmul(s.a(x), s.b(x), s.a(x)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    net, _ = build(Case(REFUSED[name], modules=two))
    with pytest.raises(UnsupportedOpError, match=r"call\(s\) without a relevance rule"):
        HeatmapDecoder(net)
