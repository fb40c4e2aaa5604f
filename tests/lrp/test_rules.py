"""Each rule is its closed form, written with contributions ``J_ji a_i`` on the Jacobian J, and is what zennit does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
import zennit.rules
from hypothesis import assume, example, given
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from tw_seg.errors import InputError
from tw_seg.lrp.core import linear_map
from tw_seg.lrp.core.linear_map import LinearMap, expand, times
from tw_seg.lrp.core.rule import InputRule, LinearRule
from tw_seg.lrp.rules import (
    RULES,
    AlphaBeta,
    Contrast,
    Deconvnet,
    Epsilon,
    Flat,
    Gamma,
    Guided,
    WSquare,
    ZBox,
    ZPlus,
)

SAMPLES, CLASSES = 2, 3

# Name: shape of the input, shape of the weight, options. A weight of no shape belongs to a pool or a BatchNorm.
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": ((6,), (5, 6), {}),
    "conv1d": ((4, 7), (6, 2, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d": ((3, 5, 4), (4, 3, 3, 3), {}),
    "conv2d strided": ((2, 6, 5), (3, 2, 3, 2), {"stride": (2, 3), "padding": (1, 0)}),
    "conv2d dilated": ((3, 5, 5), (2, 3, 3, 3), {"dilation": 2, "padding": 2}),
    "conv2d depthwise": ((3, 4, 4), (3, 1, 3, 3), {"groups": 3, "padding": "same"}),
    "conv3d": ((2, 4, 3, 3), (3, 2, 2, 2, 2), {"stride": 2, "padding": 1}),
    "conv_transpose1d": ((3, 4), (3, 2, 3), {"stride": 2}),
    "conv_transpose2d": ((4, 3, 3), (4, 2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    "conv_transpose2d dilated": ((2, 3, 3), (2, 3, 2, 2), {"dilation": 2, "padding": 1}),
    "conv_transpose3d": ((2, 2, 3, 2), (2, 2, 2, 2, 2), {"stride": 2}),
    "batch_norm": ((3, 4, 4), (3,), {}),
    "avg_pool": ((2, 5, 6), (), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "mean": ((3, 4, 3), (), {}),
}
WEIGHTED = [name for name, (_, weight, _) in LAYERS.items() if len(weight) > 1]
HAS_BIAS = [name for name, (_, weight, _) in LAYERS.items() if weight]

LINEAR_RULES = [
    Epsilon(0.0),
    Epsilon(1e-6),
    Epsilon(0.3),
    ZPlus(),
    ZPlus(0.2, zero_bias=True),
    AlphaBeta(),
    AlphaBeta(1.0, 0.0, 0.1),
    AlphaBeta(3.0, 2.0, 0.05, zero_bias=True),
    Gamma(),
    Gamma(0.0, 1e-9),
    Gamma(2.0, 0.1, zero_bias=True),
    Contrast(),
    Contrast(0.1, zero_bias=True),
]
INPUT_RULES = [Flat(), Flat(0.5), WSquare(), WSquare(0.5, zero_bias=False), ZBox(-4.0, 5.0), ZBox(-5.0, 4.5, 0.5)]


def layer_of(name: str, weight: Tensor | None, bias: Tensor | None) -> LinearMap:
    size, shape, options = LAYERS[name]
    if name == "avg_pool":
        return linear_map.avg_pool(
            lambda a: F.avg_pool2d(a, **options),
            lambda c: linear_map.avg_pool_adjoint(c, input_size=size[1:], **options),
        )
    if name == "mean":
        return linear_map.avg_pool(
            lambda a: a.mean((2, 3)), lambda c: (c / 12).reshape(*c.shape, 1, 1).expand(-1, -1, 4, 3)
        )
    assert weight is not None
    if name == "linear":
        return linear_map.linear(weight, bias)
    if name == "batch_norm":
        return linear_map.scale(weight, bias, 4)
    build = linear_map.conv_transpose if name.startswith("conv_transpose") else linear_map.conv
    return build(weight, bias, input_size=size[1:], **options)


class Dense:
    """A layer with random numbers and the same layer as a matrix, ``z = jacobian @ a + shift``."""

    def __init__(self, name: str, bias: bool, signed: bool) -> None:
        generator = torch.Generator().manual_seed(len(name) + 2 * bias + signed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        size, shape, _ = LAYERS[name]
        self.a = normal(SAMPLES, *size) if signed else normal(SAMPLES, *size).relu()
        weight = normal(*shape) if shape else None
        channels = 0
        if weight is not None:
            probe = layer_of(name, weight, None)
            channels = probe.forward(self.a, weight, None).shape[1]
        b = normal(channels) if bias and weight is not None else None
        self.layer = replace(layer_of(name, weight, b), nonnegative=not signed)
        self.z = self.layer.forward(self.a, weight, self.layer.bias)
        self.c = normal(CLASSES * SAMPLES, *self.z.shape[1:])
        self.jacobian = self.matrix(weight)
        self.connections = self.matrix(None if weight is None else torch.ones_like(weight))
        zero = torch.zeros_like(self.a[:1])
        self.shift = self.layer.forward(zero, weight, self.layer.bias).flatten()
        self.terms = self.jacobian * self.a.flatten(1).unsqueeze(1)  # contributions (S, out, in)
        self.out = self.z.flatten(1)

    def matrix(self, weight: Tensor | None) -> Tensor:
        full = jacobian(lambda a: self.layer.forward(a, weight, None), self.a[:1])
        return full.reshape(self.z[0].numel(), self.a[0].numel())


@cache
def dense_of(name: str, bias: bool, signed: bool) -> Dense:
    return Dense(name, bias, signed)


def sign(d: Tensor) -> Tensor:
    return torch.where(d < 0, -1.0, 1.0).double()


Shares = tuple[Tensor, Tensor]


def proportional(terms: Tensor, shift: Tensor, stabilizer: float) -> Shares:
    """The share of a neuron's relevance of each input (S, out, in) and of its bias (S, out)."""
    d = terms.sum(2) + shift
    d = d + stabilizer * sign(d)
    safe = torch.where(d == 0, 1.0, d)
    return terms / safe.unsqueeze(2), shift.expand_as(d) / safe


def expected_shares(rule: LinearRule | InputRule, x: Dense) -> Shares:
    """Closed forms, with contributions instead of positive and negative weights and inputs."""
    shift = torch.zeros_like(x.shift) if getattr(rule, "zero_bias", False) else x.shift
    count = x.terms.shape[0]
    match rule:
        case Epsilon(epsilon):
            return proportional(x.terms, shift, epsilon)
        case ZPlus(stabilizer):
            return proportional(x.terms.clamp(min=0), shift.clamp(min=0), stabilizer)
        case AlphaBeta(alpha, beta, stabilizer):
            positive = proportional(x.terms.clamp(min=0), shift.clamp(min=0), stabilizer)
            negative = proportional(x.terms.clamp(max=0), shift.clamp(max=0), stabilizer)
            return alpha * positive[0] - beta * negative[0], alpha * positive[1] - beta * negative[1]
        case Contrast(stabilizer):
            positive = proportional(x.terms.clamp(min=0), shift.clamp(min=0), stabilizer)
            negative = proportional(x.terms.clamp(max=0), shift.clamp(max=0), stabilizer)
            return positive[0] - negative[0], positive[1] - negative[1]
        case Gamma(gamma, stabilizer):
            up = proportional(x.terms + gamma * x.terms.clamp(min=0), shift + gamma * shift.clamp(min=0), stabilizer)
            down = proportional(x.terms + gamma * x.terms.clamp(max=0), shift + gamma * shift.clamp(max=0), stabilizer)
            above, below = (x.out > 0).double(), (x.out < 0).double()
            return (
                up[0] * above.unsqueeze(2) + down[0] * below.unsqueeze(2),
                up[1] * above + down[1] * below,
            )
        case Flat(stabilizer):
            terms = x.connections.expand(count, -1, -1)
            return proportional(terms, torch.zeros_like(shift), stabilizer)
        case WSquare(stabilizer):
            return proportional(x.jacobian.square().expand(count, -1, -1), shift.square(), stabilizer)
        case ZBox(low, high, stabilizer):
            terms = x.terms - x.jacobian.clamp(min=0) * low - x.jacobian.clamp(max=0) * high
            return proportional(terms, torch.zeros_like(shift), stabilizer)
    raise AssertionError(rule)


def relevance_of(rule: LinearRule | InputRule, x: Dense) -> Tensor:
    """Relevance (K*S, *in) at the input."""
    if isinstance(rule, InputRule):
        return rule.relevance(x.c, x.a, x.z, x.layer)
    return times(rule.coefficient(x.c, x.a, x.z, x.layer), x.a)


def close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12 * scale)


def check(rule: LinearRule | InputRule, x: Dense) -> None:
    """Relevance at the input, of the bias and of the rest, against the closed form."""
    shares, bias_shares = expected_shares(rule, x)
    out = times(x.c, x.z).flatten(1).unflatten(0, (CLASSES, SAMPLES))
    found = relevance_of(rule, x)
    # What cancels in a sum of terms of this size cannot be nearer than their rounding.
    scale = max(1.0, float((out.unsqueeze(-1) * shares).abs().max()))
    close(found.flatten(1).unflatten(0, (CLASSES, SAMPLES)), torch.einsum("ksj,sji->ksi", out, shares), scale)
    bias, rest = rule.balance(x.c, x.a, x.z, x.layer)
    assert bias.shape == rest.shape == x.c.shape
    close(bias.flatten(1).unflatten(0, (CLASSES, SAMPLES)), out * bias_shares, scale)
    total = found.flatten(1).sum(1) + bias.flatten(1).sum(1) + rest.flatten(1).sum(1)
    close(total, out.sum(2).flatten(), scale * x.out.shape[1])


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "nonnegative"])
@pytest.mark.parametrize("rule", LINEAR_RULES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_linear_rules(name: str, rule: LinearRule, signed: bool) -> None:
    for bias in {False, name in HAS_BIAS}:
        check(rule, dense_of(name, bias, signed))


@pytest.mark.parametrize("rule", INPUT_RULES, ids=str)
@pytest.mark.parametrize("name", WEIGHTED)
def test_input_rules(name: str, rule: InputRule) -> None:
    for bias in (False, True):
        check(rule, dense_of(name, bias, True))


@pytest.mark.parametrize("rule", LINEAR_RULES, ids=str)
@pytest.mark.parametrize("name", ["linear", "conv2d strided", "conv_transpose2d", "avg_pool", "batch_norm"])
def test_leaving_out_the_negative_half_changes_nothing(name: str, rule: LinearRule) -> None:
    """The coefficient itself, where inputs are 0 too."""
    x = dense_of(name, name in HAS_BIAS, False)
    assert (x.a == 0).any()
    general = replace(x.layer, nonnegative=False)
    close(rule.coefficient(x.c, x.a, x.z, x.layer), rule.coefficient(x.c, x.a, x.z, general))


@pytest.mark.parametrize("rule", [*LINEAR_RULES, *INPUT_RULES], ids=str)
def test_classes_do_not_mix(rule: LinearRule | InputRule) -> None:
    x = dense_of("conv2d", True, True)
    function = rule.relevance if isinstance(rule, InputRule) else rule.coefficient
    one_by_one = [function(c, x.a, x.z, x.layer) for c in x.c.split(SAMPLES)]
    close(function(x.c, x.a, x.z, x.layer), torch.cat(one_by_one))


@pytest.mark.parametrize("rule", LINEAR_RULES, ids=str)
def test_batch_at_another_axis(rule: LinearRule) -> None:
    """Tokens first: (L, N, F)."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, a, c = (
        torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, 4), (5,), (2, 3, 4), (6, 3, 5))
    )
    first, second = linear_map.linear(weight, bias), linear_map.linear(weight, bias, axis=1)
    z = first.forward(a, weight, bias)
    expected = rule.coefficient(c, a, z, first)
    swapped = [value.transpose(0, 1) for value in (c, a, z)]
    close(rule.coefficient(*swapped, second).transpose(0, 1), expected)
    for found, reference in zip(rule.balance(*swapped, second), rule.balance(c, a, z, first), strict=True):
        close(found.transpose(0, 1), reference)


@pytest.mark.parametrize("name", WEIGHTED)
def test_zplus_keeps_relevance_nonnegative(name: str) -> None:
    for signed in (True, False):
        x = dense_of(name, True, signed)
        seed = x.c.abs() * expand(sign(x.z), x.c)
        assert (times(seed, x.z) >= 0).all()
        found = times(ZPlus().coefficient(seed, x.a, x.z, x.layer), x.a)
        assert (found >= 0).all() and (found > 0).any()


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d dilated"])
@pytest.mark.parametrize(
    "rule", [AlphaBeta(2.0, 1.0, 0.0), AlphaBeta(1.5, 0.5, 0.0), AlphaBeta(1.0, 0.0, 0.0)], ids=str
)
def test_alpha_beta_conserves_relevance(name: str, rule: AlphaBeta) -> None:
    """Where a neuron has contributions of both signs and nothing is stabilised."""
    x = dense_of(name, True, True)
    assert (x.terms > 0).any(2).all() and (x.terms < 0).any(2).all()
    bias, rest = rule.balance(x.c, x.a, x.z, x.layer)
    out = times(x.c, x.z).flatten(1).sum(1)
    close(relevance_of(rule, x).flatten(1).sum(1) + bias.flatten(1).sum(1), out, 10.0)
    close(rest, torch.zeros_like(rest), 10.0)


def test_alpha_beta_of_contributions_of_one_sign() -> None:
    """Nothing negative to count: alpha times the relevance is handed on, which the rest makes up for."""
    layer = linear_map.linear(torch.ones(1, 2).double(), None)
    a, z, c = torch.ones(1, 2).double(), torch.full((1, 1), 2.0).double(), torch.ones(1, 1).double()
    rule = AlphaBeta(stabilizer=0.0)
    assert (rule.coefficient(c, a, z, layer) * a).sum() == 4
    assert [float(part) for part in rule.balance(c, a, z, layer)] == [0, -2]


def test_rules_agree_where_they_must() -> None:
    x = dense_of("conv2d strided", True, True)
    arguments = (x.c, x.a, x.z, x.layer)
    assert torch.equal(AlphaBeta(1.0, 0.0).coefficient(*arguments), ZPlus().coefficient(*arguments))
    close(Gamma(0.0, 0.1).coefficient(*arguments), Epsilon(0.1).coefficient(*arguments))
    x = dense_of("linear", False, False)  # without inputs and bias below 0 a large gamma leaves what is positive
    alive = replace(x.layer, nonnegative=True)
    c = x.c * (expand(x.z, x.c) > 0)
    large, plus = (rule.coefficient(c, x.a, x.z, alive) for rule in (Gamma(1e9, 0.0), ZPlus(0.0)))
    torch.testing.assert_close(large, plus, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "name", "signed", "forwards", "adjoint"),
    [
        (Epsilon(0.0), "conv2d", True, 0, 1),
        (Epsilon(0.1), "conv2d", True, 0, 1),
        (ZPlus(), "conv2d", True, 2, 2),
        (ZPlus(), "conv2d", False, 1, 1),
        (ZPlus(), "avg_pool", True, 1, 1),
        (AlphaBeta(1.0, 0.0), "conv2d", False, 1, 1),
        (AlphaBeta(), "conv2d", True, 4, 4),
        (AlphaBeta(), "conv2d", False, 2, 2),
        (AlphaBeta(), "avg_pool", False, 1, 1),
        (Gamma(), "conv2d", False, 2, 2),
    ],
    ids=str,
)
def test_nothing_is_computed_in_vain(rule, name: str, signed: bool, forwards: int, adjoint: int) -> None:
    x = dense_of(name, name in HAS_BIAS, signed)
    calls = []

    def counted(label: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *arguments: (calls.append(label), function(*arguments))[1]

    layer = replace(x.layer, forward=counted("forward", x.layer.forward), adjoint=counted("adjoint", x.layer.adjoint))
    rule.coefficient(x.c, x.a, x.z, layer)
    assert (calls.count("forward"), calls.count("adjoint")) == (forwards, adjoint)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 6, 5)),
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), (3, 4, 3)),
}
ZENNIT = [
    (Epsilon(0.3), lambda: zennit.rules.Epsilon(0.3)),
    (ZPlus(), lambda: zennit.rules.ZPlus()),
    (ZPlus(0.1, zero_bias=True), lambda: zennit.rules.ZPlus(0.1, zero_params="bias")),
    (AlphaBeta(), lambda: zennit.rules.AlphaBeta()),
    (AlphaBeta(3.0, 2.0, 0.1, zero_bias=True), lambda: zennit.rules.AlphaBeta(3.0, 2.0, 0.1, zero_params="bias")),
    (Gamma(), lambda: zennit.rules.Gamma()),
    (Gamma(0.7, 0.1, zero_bias=True), lambda: zennit.rules.Gamma(0.7, 0.1, zero_params="bias")),
    (WSquare(zero_bias=False), lambda: zennit.rules.WSquare()),
    (WSquare(0.1), lambda: zennit.rules.WSquare(0.1, zero_params="bias")),
    (Flat(0.1), lambda: zennit.rules.Flat(0.1)),
    (ZBox(-4.0, 5.0, 0.1), lambda: zennit.rules.ZBox(-4.0, 5.0, 0.1)),
]


def of_module(module: nn.Module, size: tuple[int, ...]) -> LinearMap:
    if isinstance(module, nn.Linear):
        return linear_map.linear(module.weight, module.bias)
    settings = {k: getattr(module, k) for k in ("stride", "padding", "dilation", "groups")}
    if isinstance(module, nn.ConvTranspose2d):
        settings["output_padding"] = module.output_padding
        return linear_map.conv_transpose(module.weight, module.bias, input_size=size, **settings)
    return linear_map.conv(module.weight, module.bias, input_size=size, **settings)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("rule", "hook"), ZENNIT, ids=lambda value: str(value) if not callable(value) else "")
def test_zennit(kind: str, rule: LinearRule | InputRule, hook: Callable[[], Any]) -> None:
    make, shape = MODULES[kind]
    module = make().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    a = torch.randn(SAMPLES, *shape, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        z = module(a)
        c = torch.randn(CLASSES * SAMPLES, *z.shape[1:], dtype=torch.float64)
        layer = of_module(module, shape[1:])
        if isinstance(rule, InputRule):
            found = rule.relevance(c, a, z, layer)
        else:
            found = times(rule.coefficient(c, a, z, layer), a)
    handles = hook().register(module)
    output = module(a)
    expected = [torch.autograd.grad(output, a, z * part, retain_graph=True)[0] for part in c.split(SAMPLES)]
    handles.remove()
    close(found, torch.cat(expected), 10.0)


@pytest.mark.parametrize("hook", [zennit.rules.ReLUDeconvNet, zennit.rules.ReLUGuidedBackprop])
def test_rules_of_relus_are_zennits(hook: type) -> None:
    rule = Deconvnet() if hook is zennit.rules.ReLUDeconvNet else Guided()
    module = nn.ReLU()
    u = torch.randn(SAMPLES, 5, dtype=torch.float64, requires_grad=True)
    c = torch.randn(CLASSES * SAMPLES, 5, dtype=torch.float64)
    handles = hook().register(module)
    y = module(u)
    expected = [torch.autograd.grad(y, u, part, retain_graph=True)[0] for part in c.split(SAMPLES)]
    handles.remove()
    assert torch.equal(rule.coefficient(c, u.detach(), y.detach()), torch.cat(expected))
    found = rule.coefficient(c.T, u.detach().T, y.detach().T, axis=1)
    assert torch.equal(found, torch.cat(expected).T)


DIFFERENTIABLE = [
    Epsilon(0.1),
    ZPlus(0.1),
    AlphaBeta(2.0, 1.0, 0.1),
    Gamma(0.5, 0.1),
    Flat(0.1),
    WSquare(0.1, zero_bias=False),
    ZBox(-4.0, 5.0, 0.1),
]


@pytest.mark.parametrize("rule", DIFFERENTIABLE, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (linear_map.linear, ((2, 3), (4, 3), (4,))),
        (
            lambda w, b: linear_map.conv(w, b, input_size=(4, 3), stride=2, padding=1, groups=2),
            ((2, 2, 4, 3), (2, 1, 3, 2), (2,)),
        ),
        (
            lambda w, b: linear_map.conv_transpose(w, b, input_size=(2, 2), stride=2),
            ((1, 2, 2, 2), (2, 1, 2, 2), (1,)),
        ),
    ],
    ids=["linear", "conv2d", "conv_transpose2d"],
)
def test_gradients(rule: LinearRule | InputRule, build: Callable[..., LinearMap], shapes) -> None:
    """With respect to the coefficient, the input, the weight and the bias, the output included."""
    generator = torch.Generator().manual_seed(1)

    def away_from_zero(*shape: int) -> Tensor:
        value = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (value + 0.1 * sign(value)).requires_grad_()

    a, weight, bias = (away_from_zero(*shape) for shape in shapes)

    def function(c: Tensor, a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer = build(weight, bias)
        z = layer.forward(a, weight, layer.bias)
        return rule.relevance(c, a, z, layer) if isinstance(rule, InputRule) else rule.coefficient(c, a, z, layer)

    layer = build(weight, bias)
    c = away_from_zero(2 * a.shape[0], *layer.forward(a, weight, layer.bias).shape[1:])
    assert torch.autograd.gradcheck(function, (c, a, weight, bias))


HUGE = 1e30
ROBUST = [
    Epsilon(1e-6),
    ZPlus(),
    AlphaBeta(),
    Gamma(),
    Flat(),
    WSquare(),
    WSquare(zero_bias=False),
    ZBox(-1.001 * HUGE, 1.001 * HUGE),
]
MAGNITUDES = st.sampled_from([0.0, 1e-45, 1e-40, 1e-30, 1e-6, 1.0, -1.0, 255.0, -1e-30, 1e15, -HUGE, HUGE])


@given(
    values=st.lists(MAGNITUDES, min_size=12, max_size=12),
    weights=st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.3, -1e-4, 1e-30]), min_size=18, max_size=18),
    bias=st.sampled_from([None, 0.0, 1.0, -1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example([0.0] * 12, [1.0, -1.0] * 9, None, torch.float32)
@example([1.0] * 12, [0.0] * 18, None, torch.bfloat16)
@example([0.0] * 12, [1.0] * 18, -1.0, torch.float32)
@example([HUGE, -HUGE] * 6, [1.0, -1.0] * 9, 1.0, torch.float32)
def test_finite_whatever_the_input(values, weights, bias, dtype: torch.dtype) -> None:
    weight = torch.tensor(weights, dtype=dtype).reshape(2, 1, 3, 3)
    shift = None if bias is None else torch.full((2,), bias, dtype=dtype)
    layer = linear_map.conv(weight, shift, input_size=(4, 3), padding=1)
    a = torch.tensor(values, dtype=dtype).reshape(1, 1, 4, 3)
    z = layer.forward(a, weight, layer.bias)
    assume(z.isfinite().all())
    c = torch.tensor([1.0, -2.0, 0.0], dtype=dtype).reshape(3, 1, 1, 1).expand(3, *z.shape[1:])
    layers = [layer, replace(layer, nonnegative=True)] if (a >= 0).all() else [layer]
    for rule in ROBUST:
        for each in layers:
            function = rule.relevance if isinstance(rule, InputRule) else rule.coefficient
            found = function(c, a, z, each)
            assert found.dtype == dtype and found.isfinite().all(), rule
            assert all(part.isfinite().all() for part in rule.balance(c, a, z, each)), rule


UNSTABILIZED = [ZPlus(0.0), AlphaBeta(2.0, 1.0, 0.0), Gamma(0.25, 0.0)]


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-40])
@pytest.mark.parametrize("rule", [*LINEAR_RULES, *UNSTABILIZED], ids=str)
def test_finite_gradients_of_constant_images(rule: LinearRule, value: float) -> None:
    if value == 1e-40 and rule in UNSTABILIZED:
        value = 1e-15  # 1 / d itself would overflow
    layer = linear_map.conv(torch.ones(2, 1, 3, 3, requires_grad=True), None, input_size=(4, 3), padding=1)
    a = torch.full((1, 1, 4, 3), value, requires_grad=True)
    z = layer.forward(a, layer.weight, None)
    found = rule.coefficient(torch.ones(3, *z.shape[1:]), a, z, layer)
    gradients = torch.autograd.grad(found.sum(), (a, layer.weight), allow_unused=True)
    assert found.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_dead_neurons() -> None:
    """``z = 0``: sign(0) is +1, so the denominator is epsilon and the share is 0; without epsilon it is 1."""
    layer = linear_map.linear(torch.tensor([[1.0, -1.0]]), None)
    a, z = torch.tensor([[2.0, 2.0]]), torch.zeros(1, 1)
    for epsilon, expected in ((0.1, [0.0, 0.0]), (0.0, [1.0, -1.0]), (1e-60, [0.0, 0.0])):
        assert Epsilon(epsilon).coefficient(torch.ones(1, 1), a, z, layer)[0].tolist() == expected


@pytest.mark.parametrize(
    "rule", [Epsilon(0.1), ZPlus(), AlphaBeta(), Gamma(), Flat(), WSquare(), ZBox(-9.0, 9.0)], ids=str
)
def test_rules_compile_whole(rule: LinearRule | InputRule) -> None:
    x = dense_of("conv2d", True, True)
    weight, bias = x.layer.weight, x.layer.bias

    def function(c: Tensor, a: Tensor, z: Tensor) -> Tensor:
        layer = linear_map.conv(weight, bias, input_size=(5, 4))
        return rule.relevance(c, a, z, layer) if isinstance(rule, InputRule) else rule.coefficient(c, a, z, layer)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    close(compiled(x.c, x.a, x.z), function(x.c, x.a, x.z))


class TestZBox:
    def test_bounds_of_channels(self) -> None:
        x = dense_of("conv2d", True, True)
        arguments = (x.c, x.a, x.z, x.layer)
        one, many = ZBox(-5.0, 5.0), ZBox([-5.0] * 3, (5.0,) * 3)
        assert torch.equal(one.relevance(*arguments), many.relevance(*arguments))
        low, high = torch.tensor([-4.0, -5.0, -6.0]), torch.tensor([4.0, 6.0, 5.0])
        boxes = [b.double().reshape(-1, 1, 1).expand(3, 5, 4).flatten() for b in (low, high)]
        terms = x.terms - x.jacobian.clamp(min=0) * boxes[0] - x.jacobian.clamp(max=0) * boxes[1]
        shares, _ = proportional(terms, torch.zeros_like(x.shift), 1e-6)
        out = times(x.c, x.z).flatten(1).unflatten(0, (CLASSES, SAMPLES))
        found = ZBox(tuple(low.tolist()), tuple(high.tolist())).relevance(*arguments)
        close(found.flatten(1), torch.einsum("ksj,sji->ksi", out, shares).flatten(0, 1))

    def test_from_normalisation(self) -> None:
        box = ZBox.from_normalisation((0.5, 0.4), 0.2, stabilizer=0.1)
        assert box.low == pytest.approx((-2.5, -2.0)) and box.high == pytest.approx((2.5, 3.0))
        assert box.stabilizer == 0.1
        assert ZBox.from_normalisation(0.0, (1.0, 2.0), low=-1.0) == ZBox((-1.0, -0.5), (1.0, 0.5))
        for mean, std, named in ((0.5, 0.0, "std must be > 0"), ((0.1, 0.2), (1.0,) * 3, "2 values of mean but 3")):
            with pytest.raises(InputError, match=named):
                ZBox.from_normalisation(mean, std)

    @pytest.mark.parametrize("value", [1.01, -1.01])
    def test_names_values_outside(self, value: float) -> None:
        x = dense_of("conv2d", True, True)
        a = x.a.clamp(-1, 1)
        ZBox(-1.0, 1.0).relevance(x.c, a * 1.00005, x.z, x.layer)  # rounding of the normalisation
        a[1, 2, 3, 1] = value
        with pytest.raises(
            InputError, match=rf"{value}, outside {'high=1.0' if value > 0 else 'low=-1.0'}.*mean\) / std"
        ):
            ZBox(-1.0, 1.0).relevance(x.c, a, x.z, x.layer)

    def test_does_not_look_at_values_when_compiled(self) -> None:
        x = dense_of("conv2d", True, True)
        weight = x.layer.weight
        assert x.a.abs().max() > 1

        class Net(nn.Module):
            def forward(self, c: Tensor, a: Tensor, z: Tensor) -> Tensor:
                layer = linear_map.conv(weight, None, input_size=(5, 4))
                return ZBox(-1.0, (1.0, 1.0, 1.0)).relevance(c, a, z, layer)

        exported = torch.export.export(Net(), (x.c, x.a, x.z)).module()
        assert exported(x.c, x.a, x.z).isfinite().all()
        torch.compiler.reset()
        assert torch.compile(Net(), fullgraph=True, backend="eager")(x.c, x.a, x.z).isfinite().all()

    @pytest.mark.parametrize(
        ("low", "high", "named"),
        [
            (1.0, 1.0, "low < high"),
            ((0.0, 1.0), (1.0, 0.5), "low < high"),
            ((0.0, 0.0), (1.0, 1.0, 1.0), "2 values of low and 3 of high"),
            (float("nan"), 1.0, "finite number"),
            ("-1e0", 1.0, "write 1.0e-6"),
            ((), 1.0, "finite number"),
            (0.0, (1.0, "x"), "finite number"),
        ],
    )
    def test_bounds_are_checked(self, low, high, named: str) -> None:
        with pytest.raises(InputError, match=named):
            ZBox(low, high)

    def test_names_a_wrong_number_of_channels(self) -> None:
        x = dense_of("conv2d", True, True)
        with pytest.raises(InputError, match="2 values for an input of 3 channels"):
            ZBox((-9.0, -9.0), 9.0).relevance(x.c, x.a, x.z, x.layer)


@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(-1.0, 1.0)], ids=str)
def test_input_rules_need_weights(rule: InputRule) -> None:
    pool = linear_map.avg_pool(lambda a: a, lambda c: c)
    with pytest.raises(InputError, match="found a pool"):
        rule.relevance(torch.ones(1, 3), torch.ones(1, 3), torch.ones(1, 3), pool)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), None, True, "0.1"])
@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (Epsilon, "epsilon"),
        (ZPlus, "stabilizer"),
        (AlphaBeta, "alpha"),
        (AlphaBeta, "beta"),
        (AlphaBeta, "stabilizer"),
        (Gamma, "gamma"),
        (Gamma, "stabilizer"),
        (Flat, "stabilizer"),
        (WSquare, "stabilizer"),
    ],
)
def test_numbers_are_checked(rule: type, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} of {rule.__name__} must be a number >= 0, got {value!r}"):
        rule(**{name: value})


def test_numbers_are_checked_together() -> None:
    with pytest.raises(InputError, match="alpha - beta = 1, got alpha=2.0 and beta=0.5; for this beta alpha is 1.5"):
        AlphaBeta(2.0, 0.5)
    assert AlphaBeta(2.2, 1.2).alpha == 2.2  # 1.0000000000000002 apart
    with pytest.raises(InputError, match="zero_bias of Gamma must be true or false, got 'no'"):
        Gamma(zero_bias="no")


def test_yaml_reads_some_numbers_as_text() -> None:
    with pytest.raises(InputError, match="in YAML write 1.0e-6, not 1e-6"):
        Epsilon("1e-6")


def test_rules_are_frozen_values() -> None:
    for rule in RULES.values():
        assert dataclasses.is_dataclass(rule) and rule.__dataclass_params__.frozen
    assert Epsilon(0.1) == Epsilon(0.1) != Epsilon(0.2)
    assert hash(ZBox([0.0], [1.0])) == hash(ZBox((0.0,), (1.0,)))
