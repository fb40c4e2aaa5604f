"""What is noted on the calls of a trace: fused BatchNorms, depth, the sign of inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.nets import Calls, Tiny, conv
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.trace.build import trace


def graph_of(function, **modules) -> Graph:
    return trace(Calls(function, **modules), False)


def pictures() -> Tensor:
    return torch.randn(2, 3, 11, 9, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "modules", "fused"),
    [
        (lambda s, x: s.n(s.c(x)), {}, True),
        (lambda s, x: (lambda y: s.n(y) + y)(s.c(x)), {}, False),  # the convolution has another reader
        (lambda s, x: s.n(F.relu(s.c(x))), {}, False),
    ],
)
def test_a_batch_norm_is_fused_where_it_is_the_only_reader(function, modules, fused) -> None:
    graph = graph_of(function, c=conv(), n=nn.BatchNorm2d(4), **modules)
    assert [c.norm for c in graph.calls if c.kind == "conv"] == (["n"] if fused else [None])


@pytest.mark.parametrize("layer", [conv(4, 4), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 4, 1, groups=2)])
def test_a_batch_norm_is_fused_into_the_convolution_after_it(layer: nn.Module) -> None:
    graph = graph_of(lambda s, x: s.d(s.n(F.relu(s.c(x)))), c=conv(), n=nn.BatchNorm2d(4), d=layer)
    assert [(c.norm, c.norm_before) for c in graph.calls if c.path in ("c", "d")] == [(None, None), (None, "n")]


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.d(s.n(s.c(x))),  # it belongs to the convolution before it
        lambda s, x: (lambda y: s.d(y) + y)(s.n(F.relu(s.c(x)))),  # another reader
        lambda s, x: s.d(F.relu(s.n(F.relu(s.c(x))))),
    ],
)
def test_a_batch_norm_is_not_fused_into_the_convolution_after_it(function) -> None:
    graph = graph_of(function, c=conv(), n=nn.BatchNorm2d(4), d=conv(4, 4))
    assert [c.norm_before for c in graph.calls if c.path == "d"] == [None]


def test_depth_counts_linear_calls() -> None:
    graph = trace(Tiny(), False)
    found = {c.name: c.depth for c in graph.calls if c.kind in ("conv", "linear")}
    assert found == {"conv1": 0.0, "conv2": 1 / 3, "conv3": 2 / 3, "fc": 1.0}
    assert {c.name: c.depth for c in graph.calls}["pool"] == 0.0  # that of the linear call before it


NONNEGATIVE = {
    "relu": lambda s, x: F.relu(s.c(x)),
    "pools": lambda s, x: F.avg_pool2d(F.max_pool2d(F.relu6(s.c(x)), 2), 2),
    "sum": lambda s, x: F.relu(s.c(x)) + F.relu(s.c(x)) + 1.5,
    "gate": lambda s, x: F.relu(s.c(x)) * torch.sigmoid(s.c(x)),
    "cat": lambda s, x: torch.cat([F.relu(s.c(x)), F.softplus(s.c(x))], 1)[:, :4],
    "activations": lambda s, x: F.silu(F.leaky_relu(F.hardsigmoid(s.c(x)), -0.2)),
    "parts": lambda s, x: torch.stack([*s.c(x).abs().unbind(1)], 1).permute(0, 1, 3, 2).narrow(2, 0, 5),
    "dropout": lambda s, x: F.dropout(s.c(x).square().roll(1, 3), 0.4, s.training),
    "in place": lambda s, x: F.relu_(s.c(x)).add_(0.5).mul_(2),
}
OF_ANY_SIGN = {
    "images": lambda s, x: x[:, [0, 1, 2, 2]],
    "conv": lambda s, x: s.c(x),
    "norm": lambda s, x: s.n(F.relu(s.c(x))),
    "number": lambda s, x: F.relu(s.c(x)) + (-1.5),
    "number in place": lambda s, x: F.relu(s.c(x)).add_(-1.5),
    "difference": lambda s, x: F.relu(s.c(x)) - 1.5,
    "factor": lambda s, x: F.relu(s.c(x)) * -2,
    "factor in place": lambda s, x: F.relu(s.c(x)).mul_(-2),
    "alpha": lambda s, x: torch.add(F.relu(s.c(x)), F.relu(s.c(x)), alpha=-2),
    "parameter": lambda s, x: F.relu(s.c(x)) * s.p,
    "parameter added": lambda s, x: F.relu(s.c(x)) + s.p,
    "one part": lambda s, x: torch.cat([F.relu(s.c(x))[:, :2], s.c(x)[:, :2]], 1),
    "sum": lambda s, x: F.relu(s.c(x)) + s.c(x),
    "divisor": lambda s, x: F.avg_pool2d(F.relu(s.c(x)), 2, divisor_override=-3),
    "gelu": lambda s, x: F.gelu(s.c(x)),
    "leaky": lambda s, x: F.leaky_relu(s.c(x)),
    "bicubic": lambda s, x: F.interpolate(F.relu(s.c(x)), scale_factor=2.0, mode="bicubic"),
    "pad": lambda s, x: F.pad(F.relu(s.c(x)), (1, 1), value=-1.0),
}


@pytest.mark.parametrize("name", [*NONNEGATIVE, *(f"not {name}" for name in OF_ANY_SIGN)])
def test_inputs_that_are_not_negative(name: str) -> None:
    """Rules leave the negative half out where the flag is set: it must never be set wrongly."""
    expected = name in NONNEGATIVE
    function = NONNEGATIVE[name] if expected else OF_ANY_SIGN[name.removeprefix("not ")]
    net = Calls(
        lambda s, x: s.d(function(s, x)), c=conv(), d=conv(4, 4), n=nn.BatchNorm2d(4), p=nn.Parameter(-torch.ones(1))
    )  # fmt: skip
    (last,) = [c for c in trace(net, False).calls if c.path == "d"]
    assert last.nonnegative == expected
    seen: list[Tensor] = []
    net.d.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    net(pictures())
    assert (seen[0].min() >= 0) == expected
