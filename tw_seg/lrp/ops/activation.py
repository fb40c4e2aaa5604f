"""Elementwise functions of one value.

With ``f(0) = 0`` relevance passes: the coefficient is multiplied by ``f(u) / u``, in a form that is exact at 0.
Where ``f(0)`` is not 0 the expansion of first order stands for the function: the coefficient is multiplied by
``f'(u)`` and its constant absorbs the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.linear_map import channels_last, times
from tw_seg.lrp.ops.op import Functions, Op
from tw_seg.lrp.rules import Deconvnet, Guided, Rule

if TYPE_CHECKING:
    from tw_seg.lrp.core.backward import Backward
    from tw_seg.lrp.core.tape import Tape

_ONE = ("input", "inplace")

MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Hardswish: "hardswish",
    nn.Hardtanh: "hardtanh",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Softplus: "softplus",
}

FUNCTIONS: Functions = {
    F.relu: ("relu", _ONE),
    F.relu_: ("relu", _ONE),
    torch.relu: ("relu", _ONE),
    torch.relu_: ("relu", _ONE),
    "relu": ("relu", _ONE),
    "relu_": ("relu", _ONE),
    F.relu6: ("relu6", _ONE),
    F.leaky_relu: ("leaky_relu", ("input", "negative_slope", "inplace")),
    F.prelu: ("prelu", ("input", "weight")),
    F.elu: ("elu", ("input", "alpha", "inplace")),
    F.celu: ("celu", ("input", "alpha", "inplace")),
    F.selu: ("selu", _ONE),
    F.gelu: ("gelu", ("input", "approximate")),
    F.silu: ("silu", _ONE),
    F.mish: ("mish", _ONE),
    F.hardswish: ("hardswish", _ONE),
    F.hardtanh: ("hardtanh", ("input", "min_val", "max_val", "inplace")),
    torch.clamp: ("clamp", ("input", "min", "max")),
    "clamp": ("clamp", ("input", "min", "max")),
    "clamp_": ("clamp", ("input", "min", "max")),
    torch.clip: ("clamp", ("input", "min", "max")),
    "clip": ("clamp", ("input", "min", "max")),
    torch.tanh: ("tanh", ("input",)),
    "tanh": ("tanh", ("input",)),
    "tanh_": ("tanh", ("input",)),
    torch.sigmoid: ("sigmoid", ("input",)),
    "sigmoid": ("sigmoid", ("input",)),
    "sigmoid_": ("sigmoid", ("input",)),
    F.hardsigmoid: ("hardsigmoid", _ONE),
    F.softplus: ("softplus", ("input", "beta", "threshold")),
    torch.exp: ("exp", ("input",)),
    "exp": ("exp", ("input",)),
    torch.square: ("square", ("input",)),
    "square": ("square", ("input",)),
    torch.abs: ("abs", ("input",)),
    "abs": ("abs", ("input",)),
}

Ratio = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]


def _clipped(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    """``y / u`` for a ``y`` clipped towards 0; nothing where a bound lies beyond 0 or further out, as a constant."""
    towards = (y.abs() <= u.abs()) & (y * u > 0)
    ratio = torch.where(towards, y / torch.where(towards, u, torch.ones_like(u)), torch.zeros_like(u))
    return torch.where(y == u, torch.ones_like(u), ratio)


def _expm1_ratio(u: Tensor) -> Tensor:
    """``(exp(u) - 1) / u`` for u <= 0, its limit 1 at 0; 1 elsewhere."""
    negative = u < 0
    safe = torch.where(negative, u, -torch.ones_like(u))
    return torch.where(negative, torch.expm1(safe) / safe, torch.ones_like(u))


def _elu(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    alpha = o.get("alpha", 1.0)
    return torch.where(u < 0, alpha * _expm1_ratio(u), torch.ones_like(u))


def _celu(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    return _expm1_ratio(u / o.get("alpha", 1.0))


def _selu(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return scale * torch.where(u < 0, alpha * _expm1_ratio(u), torch.ones_like(u))


def _gelu(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    if o.get("approximate", "none") == "tanh":
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return 0.5 * (1 + torch.erf(u * math.sqrt(0.5)))


def _tanh(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    small = u.abs() < 1e-4  # tanh(u) / u = 1 - u^2 / 3 + O(u^4)
    return torch.where(small, 1 - u * u / 3, y / torch.where(small, torch.ones_like(u), u))


def _softplus(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    scaled = u * o.get("beta", 1.0)
    return torch.sigmoid(scaled).masked_fill(scaled > o.get("threshold", 20.0), 1.0)  # torch's is linear from there


_RATIOS: dict[str, Ratio] = {
    "relu6": lambda u, y, o: torch.where(u > 6, 6 / u.clamp(min=6), (u > 0).to(u.dtype)),
    "leaky_relu": lambda u, y, o: torch.ones_like(u).masked_fill(u <= 0, o.get("negative_slope", 0.01)),
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
    "gelu": _gelu,
    "silu": lambda u, y, o: torch.sigmoid(u),
    "mish": lambda u, y, o: torch.tanh(F.softplus(u)),
    "hardswish": lambda u, y, o: F.hardsigmoid(u),
    "hardtanh": _clipped,
    "tanh": _tanh,
    "square": lambda u, y, o: u,
    "abs": lambda u, y, o: torch.sign(u),
}
"""Kind -> ``f(u) / u`` from u, y = f(u) and the options."""

_SLOPES: dict[str, Ratio] = {
    "sigmoid": lambda u, y, o: y * (1 - y),
    "hardsigmoid": lambda u, y, o: (u.abs() < 3).to(u.dtype) / 6,
    "softplus": _softplus,
    "exp": lambda u, y, o: y,
}
"""Kind -> ``f'(u)``, likewise."""


def _pass(ratio: Ratio) -> Callable[[Backward, Call, Tensor], dict[str, Tensor]]:
    def adjoint(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
        name, axis = call.inputs[0], backward.axis(call.name)
        return {name: times(c, ratio(backward.value(name), backward.value(call.name), call.options), axis)}

    return adjoint


def _prelu(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    u, weight = backward.value(call.inputs[0]), backward.weight(call)
    assert weight is not None
    if weight.numel() > 1:
        weight = weight.reshape(-1, *[1] * (u.ndim - 2))
    return {call.inputs[0]: times(c, torch.where(u > 0, torch.ones_like(u), weight), backward.axis(call.name))}


def _out_of_place(function: Callable[..., Tensor], *names: str) -> Callable[[Tape, Call], Tensor]:
    def forward(tape: Tape, call: Call) -> Tensor:
        return function(tape.values[call.inputs[0]], *(call.options[n] for n in names if n in call.options))

    return forward


def _clamp_forward(tape: Tape, call: Call) -> Tensor:
    bounds = (tape.resolve(call.options.get(name)) for name in ("min", "max"))
    return torch.clamp(tape.values[call.inputs[0]], *bounds)


_FORWARDS: dict[str, Callable[[Tape, Call], Tensor]] = {
    "relu6": _out_of_place(F.relu6),
    "leaky_relu": _out_of_place(F.leaky_relu, "negative_slope"),
    "elu": _out_of_place(F.elu, "alpha"),
    "celu": _out_of_place(F.celu, "alpha"),
    "selu": _out_of_place(F.selu),
    "silu": _out_of_place(F.silu),
    "mish": _out_of_place(F.mish),
    "hardswish": _out_of_place(F.hardswish),
    "hardtanh": _out_of_place(F.hardtanh, "min_val", "max_val"),
    "hardsigmoid": _out_of_place(F.hardsigmoid),
    "tanh": _out_of_place(torch.tanh),
    "sigmoid": _out_of_place(torch.sigmoid),
}

ACTIVATIONS = ("relu", *_RATIOS, *_SLOPES, "prelu", "clamp")
"""Kinds of this file."""


def _save_gate(tape: Tape, call: Call) -> Tensor:
    """One byte for each element instead of its four; where autograd keeps the output anyway, that."""
    value: Tensor = tape.values[call.name]
    return value.detach() if value.requires_grad else _gate(value)


def _gate(saved: Tensor) -> Tensor:
    return saved if saved.dtype == torch.bool else channels_last(saved > 0)


def _relu(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, rule, axis = call.inputs[0], backward.composite.rule(call), backward.axis(call.name)
    if isinstance(rule, (Deconvnet, Guided)):
        return {name: rule.activation(c, backward.value(name), backward.value(call.name), axis)}
    return {name: times(c, backward.saved(call.name, axis, _gate), axis)}


def _relu_in_place(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    if c.requires_grad or isinstance(backward.composite.rule(call), (Deconvnet, Guided)):
        return _relu(backward, call, c)  # autograd copies what is written through a view
    axis = backward.axis(call.name)
    if axis == 0 and backward.segments and backward.segments[-1][2] == len(c):
        for image, start, stop in backward.segments:  # no copy of an image's gate for each of its pairs
            c[start:stop].mul_(_gate(backward.tape.saved[call.name][image]))
        return {call.inputs[0]: c}
    gate = backward.saved(call.name, axis, _gate)
    c.unflatten(axis, (-1, gate.shape[axis])).mul_(gate.unsqueeze(axis))
    return {call.inputs[0]: c}


def _relu_reads(rule: Rule, call: Call, calls: Mapping[str, Call]) -> tuple[str, ...]:
    return (*call.inputs, call.name) if isinstance(rule, (Deconvnet, Guided)) else ()


OPS: dict[str, Op] = {
    "relu": Op(_relu, _out_of_place(F.relu), save=_save_gate, reads=_relu_reads, fresh=True, overwrite=_relu_in_place),
    **{kind: Op(_pass(ratio), _FORWARDS.get(kind)) for kind, ratio in _RATIOS.items()},
    **{kind: Op(_pass(slope), _FORWARDS.get(kind), conserves=False) for kind, slope in _SLOPES.items()},
    "prelu": Op(_prelu),
    "clamp": Op(_pass(_clipped), _clamp_forward, conserves=False),
}
