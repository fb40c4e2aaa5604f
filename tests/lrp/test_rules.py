"""Each rule is its closed form, written as dense matrix algebra on the Jacobian."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import jacobian

from tw_seg.errors import InputError
from tw_seg.lrp import adjoints
from tw_seg.lrp.rules import RULES, Epsilon, Flat, WSquare, ZBox

LOW, HIGH = (-2.5, -2.0, -1.5), (2.0, 2.5, 3.0)


class Dense:
    """A layer as a matrix: ``weight`` (out, in), and the same with every weight 1 (the connections)."""

    def __init__(self, kind: str) -> None:
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        if kind == "linear":
            self.a, weight, self.bias = normal(2, 3), normal(4, 3), normal(4)
            self.layer = adjoints.linear(weight, self.bias)
        else:
            options = {"stride": 2, "padding": 1} if kind == "conv" else {"padding": 2, "dilation": 2}
            self.a, weight, self.bias = normal(2, 3, 6, 5), normal(4, 3, 3, 3), normal(4)
            self.layer = adjoints.conv(weight, self.bias, input_size=(6, 5), **options)
        self.z = self.layer.forward(self.a, weight, self.bias)
        self.c = normal(2, 5, *self.z.shape[1:])
        self.weight, self.connections = (self.matrix(w) for w in (weight, torch.ones_like(weight)))
        per_channel = [torch.tensor(b).double().reshape(-1, *([1] * (self.a.ndim - 2))) for b in (LOW, HIGH)]
        self.low, self.high = (b.expand(self.a.shape[1:]).flatten() for b in per_channel)

    def matrix(self, weight: Tensor) -> Tensor:
        full = jacobian(lambda x: self.layer.forward(x, weight, None), self.a[:1])
        return full.reshape(self.z[0].numel(), self.a[0].numel())

    def relevance(self, terms: Tensor, denominator: Tensor, stabilizer: float) -> Tensor:
        """``R_i = sum_j terms_ji / (d_j + stabilizer * sign d_j) * R_j``; terms (2, out, in), d (2, out)."""
        signs = torch.where(denominator < 0, -1.0, 1.0).double()
        out = self.z.flatten(1).unsqueeze(1) * self.c.flatten(2)
        share = terms / (denominator + stabilizer * signs).unsqueeze(2)
        return torch.einsum("nkj,nji->nki", out, share).reshape(2, 5, *self.a.shape[1:])


@pytest.fixture(params=["linear", "conv", "dilated"])
def dense(request: pytest.FixtureRequest) -> Dense:
    return Dense(request.param)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.3])
def test_epsilon(dense: Dense, epsilon: float) -> None:
    coefficient = Epsilon(epsilon).coefficient(dense.c, dense.a, dense.z, dense.layer)
    terms = dense.weight * dense.a.flatten(1).unsqueeze(1)
    expected = dense.relevance(terms, dense.z.flatten(1), epsilon)
    close(coefficient * dense.a.unsqueeze(1), expected)


def test_epsilon_of_a_dead_neuron_is_finite() -> None:
    """``z = 0``: sign(0) is +1, so the denominator is epsilon and the share is 0."""
    layer = adjoints.linear(torch.tensor([[1.0, -1.0]]), None)
    a, z = torch.tensor([[2.0, 2.0]]), torch.zeros(1, 1)
    for epsilon, expected in ((0.1, [0.0, 0.0]), (0.0, [1.0, -1.0])):
        assert Epsilon(epsilon).coefficient(torch.ones(1, 1, 1), a, z, layer)[0, 0].tolist() == expected


def test_epsilon_of_a_pool() -> None:
    a = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    layer = adjoints.avg_pool(
        lambda x: F.avg_pool2d(x, 2),
        lambda c: adjoints.avg_pool2d_adjoint(c, input_size=(4, 4), kernel_size=2),
    )
    z = layer.forward(a, None, None)
    c = torch.randn(1, 3, *z.shape[1:], dtype=torch.float64)
    share = c * z / (z + 0.2 * torch.where(z < 0, -1.0, 1.0).double())
    expected = share.repeat_interleave(2, 3).repeat_interleave(2, 4) / 4
    close(Epsilon(0.2).coefficient(c, a, z, layer), expected)


@pytest.mark.parametrize("stabilizer", [1e-6, 0.5])
def test_flat(dense: Dense, stabilizer: float) -> None:
    found = Flat(stabilizer).relevance(dense.c, dense.a, dense.z, dense.layer)
    terms = dense.connections.expand(2, -1, -1)
    close(found, dense.relevance(terms, terms.sum(2), stabilizer))


@pytest.mark.parametrize("stabilizer", [1e-6, 0.5])
def test_wsquare(dense: Dense, stabilizer: float) -> None:
    found = WSquare(stabilizer).relevance(dense.c, dense.a, dense.z, dense.layer)
    terms = dense.weight.square().expand(2, -1, -1)
    close(found, dense.relevance(terms, terms.sum(2), stabilizer))


@pytest.mark.parametrize("stabilizer", [1e-6, 0.5])
def test_zbox(dense: Dense, stabilizer: float) -> None:
    found = ZBox(LOW, HIGH, stabilizer).relevance(dense.c, dense.a, dense.z, dense.layer)
    positive, negative = dense.weight.clamp(min=0), dense.weight.clamp(max=0)
    terms = dense.weight * dense.a.flatten(1).unsqueeze(1) - positive * dense.low - negative * dense.high
    close(found, dense.relevance(terms, terms.sum(2), stabilizer))


def test_zbox_with_one_number() -> None:
    dense = Dense("conv")
    one, many = ZBox(-2.0, 2.0), ZBox((-2.0,) * 3, (2.0,) * 3)
    arguments = (dense.c, dense.a, dense.z, dense.layer)
    assert torch.equal(one.relevance(*arguments), many.relevance(*arguments))


def test_zbox_names_a_wrong_number_of_channels() -> None:
    dense = Dense("conv")
    with pytest.raises(InputError, match="2 values for an input of 3 channels"):
        ZBox((-1.0, -1.0), 1.0).relevance(dense.c, dense.a, dense.z, dense.layer)


@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(-1.0, 1.0)])
def test_input_rules_need_weights(rule) -> None:
    pool = adjoints.avg_pool(lambda a: a, lambda c: c)
    with pytest.raises(InputError, match="found a pool"):
        rule.relevance(torch.ones(1, 1, 3), torch.ones(1, 3), torch.ones(1, 3), pool)


@pytest.mark.parametrize("epsilon", [-1.0, float("nan")])
def test_epsilon_is_not_negative(epsilon: float) -> None:
    with pytest.raises(InputError, match="epsilon"):
        Epsilon(epsilon)


def test_rules_are_frozen_values() -> None:
    for rule in RULES.values():
        assert dataclasses.is_dataclass(rule) and rule.__dataclass_params__.frozen
    assert Epsilon(0.1) == Epsilon(0.1) != Epsilon(0.2)
