"""Elementwise functions of one value.

With ``f(0) = 0`` relevance passes: the coefficient is multiplied by ``f(u) / u``, in a form that is exact at 0.
Where ``f(0)`` is not 0 the expansion of first order stands for the function: the coefficient is multiplied by
``f'(u)`` and its constant absorbs the rest. A rule of activations that is not plain takes the place of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Adjoint, Call, Channels, Forward, Memory, Names, Op, Sign
from tw_seg.lrp.core.linear_map import channels_last, times
from tw_seg.lrp.core.rule import ActivationRule, Rule
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.op import name_rule, never_negative, of_any_sign, sign_of_inputs, spell

_ONE = ("input", "inplace")
_BOUNDS = ("input", "min", "max")

Ratio = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""From the input u, the output y and the call's options to a factor of the coefficient."""


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


def _relu6(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    return torch.where(u > 6, 6 / u.clamp(min=6), (u > 0).to(u.dtype))


def _leaky_relu(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    return torch.ones_like(u).masked_fill(u <= 0, o.get("negative_slope", 0.01))


def _sqrt(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:
    return torch.where(y > 0, 1 / torch.where(y > 0, y, torch.ones_like(y)), torch.zeros_like(y))


def _by_rule(plain: Adjoint) -> Adjoint:
    """The adjoint of an activation: ``plain``, unless a rule takes its place."""

    def adjoint(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
        rule = backward.rules[call.name]
        if rule.is_plain:
            return plain(backward, call, c)
        assert isinstance(rule, ActivationRule)
        u, y = backward.value(call.inputs[0]), backward.value(call.name)
        return {call.inputs[0]: rule.coefficient(c, u, y, backward.axis(call.name))}

    return adjoint


def _multiply(ratio: Ratio) -> Adjoint:
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


def _save_gate(tape: Tape, call: Call) -> Tensor:
    """One byte for each element instead of its four; where autograd keeps the output anyway, that."""
    value: Tensor = tape.values[call.name]
    return value.detach() if value.requires_grad else _gate(value)


def _gate(saved: Tensor) -> Tensor:
    return saved if saved.dtype == torch.bool else channels_last(saved > 0)


def _relu(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    axis = backward.axis(call.name)
    return {call.inputs[0]: times(c, backward.saved(call.name, axis, _gate), axis)}


_relu_by_rule = _by_rule(_relu)


def _relu_in_place(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    if c.requires_grad or not backward.rules[call.name].is_plain:
        return _relu_by_rule(backward, call, c)  # autograd copies what is written through a view
    axis = backward.axis(call.name)
    if axis == 0 and backward.segments and backward.segments[-1][2] == len(c):
        for image, start, stop in backward.segments:  # no copy of an image's gate for each of its pairs
            c[start:stop].mul_(_gate(backward.tape.saved[call.name][image]))
        return {call.inputs[0]: c}
    gate = backward.saved(call.name, axis, _gate)
    c.unflatten(axis, (-1, gate.shape[axis])).mul_(gate.unsqueeze(axis))
    return {call.inputs[0]: c}


def _relu_reads(rule: Rule, call: Call, calls: Mapping[str, Call]) -> Names:
    return () if rule.is_plain else (*call.inputs, call.name)


def _run(function: Callable[..., Tensor], *names: str) -> Forward:
    """``forward`` out of place, of a function whose other arguments have these names."""

    def forward(tape: Tape, call: Call) -> Tensor:
        return function(tape.values[call.inputs[0]], *(call.options[n] for n in names if n in call.options))

    return forward


def _clamp_forward(tape: Tape, call: Call) -> Tensor:
    bounds = (tape.resolve(call.options.get(name)) for name in ("min", "max"))
    return torch.clamp(tape.values[call.inputs[0]], *bounds)


def _describe_rule(words: str) -> Callable[[Backward, Call, frozenset[str]], str]:
    def text(backward: Backward, call: Call, handed: frozenset[str]) -> str:
        return words if backward.rules[call.name].is_plain else name_rule(backward, call, handed)

    return text


def _activation(
    kind: str, adjoint: Adjoint, sign: Sign, functions: dict[Any, Names], module: type[nn.Module] | None, **rest: Any
) -> Op:
    """An elementwise function; ``rest`` are more attributes of its `Op`."""
    return Op(
        kind,
        _by_rule(adjoint),
        Memory.NEW,
        sign,
        Channels.KEPT,
        modules=() if module is None else (module,),
        functions=functions,
        group="activation",
        **{"text": _describe_rule("pass"), **rest},
    )


def _expansion(kind: str, slope: Ratio, sign: Sign, functions: dict[Any, Names], module: Any, **rest: Any) -> Op:
    """A function with ``f(0) != 0``, of which the expansion of first order is taken."""
    text = _describe_rule("first order")
    return _activation(kind, _multiply(slope), sign, functions, module, text=text, conserves=False, **rest)


OPS = (
    _activation(
        "relu",
        _relu,
        never_negative,
        spell(_ONE, "relu"),
        nn.ReLU,
        forward=_run(F.relu),
        save=_save_gate,
        reads=_relu_reads,
        fresh=True,
        overwrite=_relu_in_place,
    ),
    _activation("relu6", _multiply(_relu6), never_negative, spell(_ONE, "relu6"), nn.ReLU6, forward=_run(F.relu6)),
    _activation(
        "leaky_relu",
        _multiply(_leaky_relu),
        sign_of_inputs,
        spell(("input", "negative_slope", "inplace"), "leaky_relu"),
        nn.LeakyReLU,
        options=("negative_slope",),
        forward=_run(F.leaky_relu, "negative_slope"),
    ),
    _activation("prelu", _prelu, of_any_sign, spell(("input", "weight"), "prelu"), nn.PReLU, weighted=True),
    _activation(
        "elu",
        _multiply(_elu),
        of_any_sign,
        spell(("input", "alpha", "inplace"), "elu"),
        nn.ELU,
        options=("alpha",),
        forward=_run(F.elu, "alpha"),
    ),
    _activation(
        "celu",
        _multiply(_celu),
        of_any_sign,
        spell(("input", "alpha", "inplace"), "celu"),
        nn.CELU,
        options=("alpha",),
        forward=_run(F.celu, "alpha"),
    ),
    _activation("selu", _multiply(_selu), of_any_sign, spell(_ONE, "selu"), nn.SELU, forward=_run(F.selu)),
    _activation(
        "gelu",
        _multiply(_gelu),
        sign_of_inputs,
        spell(("input", "approximate"), "gelu"),
        nn.GELU,
        options=("approximate",),
    ),
    _activation(
        "silu",
        _multiply(lambda u, y, o: torch.sigmoid(u)),
        sign_of_inputs,
        spell(_ONE, "silu"),
        nn.SiLU,
        forward=_run(F.silu),
    ),
    _activation(
        "mish",
        _multiply(lambda u, y, o: torch.tanh(F.softplus(u))),
        of_any_sign,
        spell(_ONE, "mish"),
        nn.Mish,
        forward=_run(F.mish),
    ),
    _activation(
        "hardswish",
        _multiply(lambda u, y, o: F.hardsigmoid(u)),
        sign_of_inputs,
        spell(_ONE, "hardswish"),
        nn.Hardswish,
        forward=_run(F.hardswish),
    ),
    _activation(
        "hardtanh",
        _multiply(_clipped),
        of_any_sign,
        spell(("input", "min_val", "max_val", "inplace"), "hardtanh"),
        nn.Hardtanh,
        options=("min_val", "max_val"),
        forward=_run(F.hardtanh, "min_val", "max_val"),
    ),
    _activation(
        "clamp",
        _multiply(_clipped),
        of_any_sign,
        {
            **spell(_BOUNDS, "clamp clip"),
            **spell(("input", "min"), "clamp_min"),
            **spell(("input", "max"), "clamp_max"),
        },
        None,
        forward=_clamp_forward,
        conserves=False,
        rescales=True,
    ),
    _activation(
        "tanh",
        _multiply(_tanh),
        of_any_sign,
        spell(("input",), "tanh"),
        nn.Tanh,
        forward=_run(torch.tanh),
        gate=True,
    ),
    _activation(
        "square",
        _multiply(lambda u, y, o: u),
        never_negative,
        spell(("input",), "square"),
        None,
    ),
    _activation(
        "sqrt",
        _multiply(_sqrt),
        never_negative,
        spell(("input",), "sqrt"),
        None,
        scales=True,
    ),
    _expansion(
        "rsqrt",
        lambda u, y, o: -0.5 * y**3,
        never_negative,
        spell(("input",), "rsqrt"),
        None,
        scales=True,
    ),
    _activation(
        "abs",
        _multiply(lambda u, y, o: torch.sign(u)),
        never_negative,
        spell(("input",), "abs absolute"),
        None,
    ),
    _expansion(
        "sigmoid",
        lambda u, y, o: y * (1 - y),
        never_negative,
        spell(("input",), "sigmoid expit"),
        nn.Sigmoid,
        forward=_run(torch.sigmoid),
        gate=True,
        probabilities=True,
    ),
    _expansion(
        "hardsigmoid",
        lambda u, y, o: (u.abs() < 3).to(u.dtype) / 6,
        never_negative,
        spell(_ONE, "hardsigmoid"),
        nn.Hardsigmoid,
        forward=_run(F.hardsigmoid),
        gate=True,
        probabilities=True,
    ),
    _expansion(
        "logsigmoid",
        lambda u, y, o: torch.sigmoid(-u),
        of_any_sign,
        spell(("input",), "logsigmoid"),
        nn.LogSigmoid,
        probabilities=True,
    ),
    _expansion(
        "softplus",
        _softplus,
        never_negative,
        spell(("input", "beta", "threshold"), "softplus"),
        nn.Softplus,
        options=("beta", "threshold"),
    ),
    _expansion(
        "exp",
        lambda u, y, o: y,
        never_negative,
        spell(("input",), "exp"),
        None,
    ),
)
