"""Elementwise functions: relevance is multiplied by ``f(u) / u``, or by the slope where ``f(0)`` is not 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.ops.harness import Body, Case, check, spellings
from tw_seg.lrp import HeatmapDecoder


def activations(name: str, function: Callable[[Tensor], Tensor], *bodies: Body, **modules) -> dict[str, Case]:
    """Cases of ``u * (f(u) / u).detach()``, each body a function of (net, u)."""

    def surrogate(s, x):
        u = 3 * s.a(x)
        return u * (function(u) / u).detach()

    return _cases(name, surrogate, bodies, modules)


def slopes(name: str, *bodies: Body, **modules) -> dict[str, Case]:
    """Cases of an expansion of first order: heatmaps are input x gradient."""
    return _cases(name, None, bodies, modules)


def _cases(name, surrogate, bodies, modules) -> dict[str, Case]:
    return spellings(
        name,
        *(lambda s, x, f=body: f(s, 3 * s.a(x)) for body in bodies),  # 3: to where they saturate
        surrogate=surrogate,
        modules=lambda: {key: make() for key, make in modules.items()},
    )


CASES = {
    **activations(
        "relu",
        F.relu,
        lambda s, u: s.m(u),
        lambda s, u: s.i(u),
        lambda s, u: F.relu(u),
        lambda s, u: F.relu(input=u, inplace=True),
        lambda s, u: F.relu_(u),
        lambda s, u: torch.relu(u),
        lambda s, u: torch.relu_(u),
        lambda s, u: u.relu(),
        lambda s, u: u.relu_(),
        m=nn.ReLU,
        i=lambda: nn.ReLU(inplace=True),
    ),
    **activations(
        "relu6",
        F.relu6,
        lambda s, u: s.m(u),
        lambda s, u: F.relu6(u),
        lambda s, u: F.relu6(u, inplace=True),
        m=lambda: nn.ReLU6(True),
    ),
    **activations(
        "leaky_relu",
        lambda u: F.leaky_relu(u, 0.2),
        lambda s, u: s.m(u),
        lambda s, u: F.leaky_relu(u, 0.2),
        lambda s, u: F.leaky_relu(u, negative_slope=0.2, inplace=True),
        m=lambda: nn.LeakyReLU(0.2, inplace=True),
    ),
    **activations(
        "leaky_relu default", F.leaky_relu, lambda s, u: F.leaky_relu(u), lambda s, u: s.m(u), m=nn.LeakyReLU
    ),
    **slopes(
        "prelu",
        lambda s, u: s.m(u),
        lambda s, u: s.c(u),
        lambda s, u: F.prelu(u, s.m.weight),
        lambda s, u: F.prelu(u, weight=s.c.weight),
        lambda s, u: torch.prelu(u, s.c.weight),
        lambda s, u: s.c(u.flatten(2)),
        m=nn.PReLU,
        c=lambda: nn.PReLU(4),
    ),
    **activations(
        "elu",
        lambda u: F.elu(u, 0.7),
        lambda s, u: s.m(u),
        lambda s, u: F.elu(u, 0.7),
        lambda s, u: F.elu(u, alpha=0.7, inplace=True),
        m=lambda: nn.ELU(0.7, inplace=True),
    ),
    **activations(
        "celu",
        lambda u: F.celu(u, 0.7),
        lambda s, u: s.m(u),
        lambda s, u: F.celu(u, 0.7),
        lambda s, u: F.celu(u, alpha=0.7),
        m=lambda: nn.CELU(0.7, True),
    ),
    **activations(
        "selu", F.selu, lambda s, u: s.m(u), lambda s, u: F.selu(u), lambda s, u: F.selu(u, inplace=True), m=nn.SELU
    ),
    **activations("gelu", F.gelu, lambda s, u: s.m(u), lambda s, u: F.gelu(u), m=nn.GELU),
    **activations(
        "gelu tanh",
        lambda u: F.gelu(u, approximate="tanh"),
        lambda s, u: s.m(u),
        lambda s, u: F.gelu(u, approximate="tanh"),
        m=lambda: nn.GELU(approximate="tanh"),
    ),
    **activations(
        "silu", F.silu, lambda s, u: s.m(u), lambda s, u: F.silu(u), lambda s, u: F.silu(u, inplace=True), m=nn.SiLU
    ),
    **activations("mish", F.mish, lambda s, u: s.m(u), lambda s, u: F.mish(u), lambda s, u: F.mish(u, True), m=nn.Mish),
    **activations(
        "hardswish",
        F.hardswish,
        lambda s, u: s.m(u),
        lambda s, u: F.hardswish(u),
        lambda s, u: F.hardswish(u, inplace=True),
        m=lambda: nn.Hardswish(inplace=True),
    ),
    **activations(
        "hardtanh",
        lambda u: F.hardtanh(u, -0.5, 1.5),
        lambda s, u: s.m(u),
        lambda s, u: F.hardtanh(u, -0.5, 1.5),
        lambda s, u: F.hardtanh(u, min_val=-0.5, max_val=1.5, inplace=True),
        m=lambda: nn.Hardtanh(-0.5, 1.5),
    ),
    **activations("hardtanh default", F.hardtanh, lambda s, u: s.m(u), lambda s, u: F.hardtanh(u), m=nn.Hardtanh),
    **activations(
        "hardtanh from 0",
        lambda u: F.hardtanh(u, 0.0, 2.0),
        lambda s, u: s.m(u),
        m=lambda: nn.Hardtanh(0.0, 2.0),
    ),
    **activations(
        "clamp",
        lambda u: u.clamp(-0.5, 1.5),
        lambda s, u: torch.clamp(u, -0.5, 1.5),
        lambda s, u: torch.clamp(u, min=-0.5, max=1.5),
        lambda s, u: u.clamp(-0.5, 1.5),
        lambda s, u: u.clamp(max=1.5).clamp(min=-0.5),
        lambda s, u: u.clamp_(-0.5, 1.5),
        lambda s, u: torch.clip(u, -0.5, 1.5),
        lambda s, u: u.clip(-0.5, max=1.5),
    ),
    **activations(
        "clamp at 0",
        lambda u: u.clamp(0.0, 2.0),
        lambda s, u: u.clamp(0, 2),
        lambda s, u: torch.clamp(u, min=0).clamp(max=2.0),
    ),
    # Bounds that leave 0 out are constants; what lies between passes.
    **slopes("clamp above 0", lambda s, u: u.clamp(min=0.5), lambda s, u: u.clamp(max=-0.5)),
    **activations(
        "tanh",
        torch.tanh,
        lambda s, u: s.m(u),
        lambda s, u: torch.tanh(u),
        lambda s, u: F.tanh(u),
        lambda s, u: u.tanh(),
        lambda s, u: u.tanh_(),
        m=nn.Tanh,
    ),
    **slopes(
        "sigmoid",
        lambda s, u: s.m(u),
        lambda s, u: torch.sigmoid(u),
        lambda s, u: F.sigmoid(u),
        lambda s, u: u.sigmoid(),
        lambda s, u: u.sigmoid_(),
        m=nn.Sigmoid,
    ),
    **_cases(
        "hardsigmoid",
        lambda s, x: F.relu6(3 * s.a(x) + 3) / 6,  # the gradient of torch's own holds 1/6 in single precision
        (
            lambda s, u: s.m(u),
            lambda s, u: F.hardsigmoid(u),
            lambda s, u: F.hardsigmoid(u, inplace=True),
        ),
        {"m": lambda: nn.Hardsigmoid(inplace=True)},
    ),
    **slopes(
        "softplus",
        lambda s, u: s.m(u),
        lambda s, u: F.softplus(u),
        lambda s, u: F.softplus(u, 2.0),
        lambda s, u: F.softplus(u, beta=0.5, threshold=4),
        m=lambda: nn.Softplus(3.0, 2.0),
    ),
    **slopes("logsigmoid", lambda s, u: s.m(u), lambda s, u: F.logsigmoid(u), m=nn.LogSigmoid),
    **slopes("exp", lambda s, u: torch.exp(u), lambda s, u: u.exp()),
    **activations("square", torch.square, lambda s, u: torch.square(u), lambda s, u: u.square()),
    **activations("abs", torch.abs, lambda s, u: torch.abs(u), lambda s, u: u.abs()),
}


@pytest.mark.parametrize("name", CASES)
def test_activation(name: str) -> None:
    check(CASES[name])


RATIOS = {
    "relu": (F.relu, 0.0), "relu6": (F.relu6, 0.0), "elu": (F.elu, 1.0), "celu": (F.celu, 1.0),
    "selu": (F.selu, 1.0507009873554805), "gelu": (F.gelu, 0.5), "silu": (F.silu, 0.5), "tanh": (torch.tanh, 1.0),
    "hardswish": (F.hardswish, 0.5), "hardtanh": (F.hardtanh, 1.0), "clamp": (lambda u: u.clamp(0, 1), None),
    "mish": (F.mish, 0.6), "square": (torch.square, 0.0), "abs": (torch.abs, 0.0), "sigmoid": (torch.sigmoid, 0.25),
    "softplus": (F.softplus, 0.5), "logsigmoid": (F.logsigmoid, 0.5), "leaky_relu": (F.leaky_relu, 0.01),
}  # fmt: skip


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_at_zero_and_far_out(name: str, dtype: torch.dtype) -> None:
    """The ratio at 0 is its limit (a ReLU's gate is closed), and it is finite with its gradient far from 0."""
    function, limit = RATIOS[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return function(x * self.scale).sum(2)

    net = Net()
    places = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 60.0, -60.0, 1e-3], dtype=dtype)
    decoder = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}, read_out="input")
    _, kept = decoder.coefficients(places.reshape(1, 1, 7))
    (c,) = [kept[call.name] for call in decoder.graph(places.reshape(1, 1, 7)).calls if call.kind == "mul"]
    assert c.isfinite().all()
    if limit is not None:
        torch.testing.assert_close(c[0, 0, :2], torch.full((2,), limit, dtype=dtype), rtol=4e-3, atol=4e-3)
    decoder(places.reshape(1, 1, 7)).heatmaps.square().sum().backward()
    assert net.scale.grad is not None and net.scale.grad.isfinite().all()
