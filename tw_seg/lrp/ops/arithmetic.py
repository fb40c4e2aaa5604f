"""Sums, products and quotients of two values."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tw_seg.lrp.adjoints import stabilize, times, unbroadcast
from tw_seg.lrp.graph import Call, Ref
from tw_seg.lrp.ops.op import Functions, Op
from tw_seg.lrp.rules import Epsilon

if TYPE_CHECKING:
    from tw_seg.lrp.backward import Pass
    from tw_seg.lrp.tape import Tape

_ADD = ("input", "other", "alpha")
_TWO = ("input", "other")

FUNCTIONS: Functions = {
    operator.add: ("add", _ADD),
    operator.iadd: ("add", _ADD),
    torch.add: ("add", _ADD),
    "add": ("add", _ADD),
    "add_": ("add", _ADD),
    operator.sub: ("sub", _ADD),
    operator.isub: ("sub", _ADD),
    torch.sub: ("sub", _ADD),
    "sub": ("sub", _ADD),
    "sub_": ("sub", _ADD),
    operator.neg: ("neg", ("input",)),
    torch.neg: ("neg", ("input",)),
    "neg": ("neg", ("input",)),
    operator.mul: ("mul", _TWO),
    operator.imul: ("mul", _TWO),
    torch.mul: ("mul", _TWO),
    "mul": ("mul", _TWO),
    "mul_": ("mul", _TWO),
    torch.multiply: ("mul", _TWO),
    operator.truediv: ("div", _TWO),
    operator.itruediv: ("div", _TWO),
    torch.div: ("div", _TWO),
    "div": ("div", _TWO),
    "div_": ("div", _TWO),
    operator.pow: ("pow", ("input", "exponent")),
    torch.pow: ("pow", ("input", "exponent")),
    "pow": ("pow", ("input", "exponent")),
    torch.addcmul: ("addcmul", ("input", "tensor1", "tensor2", "value")),
    torch.maximum: ("maximum", _TWO),
    torch.minimum: ("minimum", _TWO),
}

GATES = ("sigmoid", "hardsigmoid", "softmax", "tanh")
"""Kinds whose value scales another one: in a product all relevance goes to the other factor."""


def is_ref(value: Any, name: str) -> bool:
    """Whether an argument is the value of that call."""
    return isinstance(value, Ref) and value.name == name


def _to(run: Pass, call: Call, name: str, c: Tensor) -> Tensor:
    """A coefficient at the output summed to the shape of an operand that was broadcast."""
    return unbroadcast(c, run.tape.values[name].shape, run.axis(name))


def _share(run: Pass, call: Call, c: Tensor) -> Tensor:
    """The coefficient less what the stabiliser of the call's rule absorbs."""
    rule = run.composite.rule(call)
    if isinstance(rule, Epsilon) and rule.epsilon:
        z = run.value(call.name)
        return times(c, z / stabilize(z, rule.epsilon), run.axis(call.name))
    return c


def _add(run: Pass, call: Call, c: Tensor) -> dict[str, Tensor]:
    c = _share(run, call, c)
    sign = -1 if call.kind == "sub" else 1
    factors = {"input": 1, "other": sign * call.options.get("alpha", 1)}
    result: dict[str, Tensor] = {}
    for operand, factor in factors.items():
        value = call.options.get(operand)
        if isinstance(value, Ref) and value.name in call.inputs:
            part = _to(run, call, value.name, c if factor == 1 else c * factor)
            result[value.name] = result[value.name] + part if value.name in result else part
    return result


def _add_absorbed(run: Pass, call: Call, c: Tensor) -> Tensor:
    sign = -1 if call.kind == "sub" else 1
    c = _share(run, call, c)
    absorbed = torch.zeros_like(c)
    for operand, factor in {"input": 1, "other": sign * call.options.get("alpha", 1)}.items():
        value = call.options.get(operand)
        if not (isinstance(value, Ref) and value.name in call.inputs):
            absorbed = absorbed + run.multiply(c, value, call) * factor
    return absorbed.masked_fill(c == 0, 0.0)  # minus infinity, as masks of attention add it, has no relevance


def _add_forward(tape: Tape, call: Call) -> Any:
    a, b = (tape.resolve(call.options[n]) for n in _TWO)
    alpha = call.options.get("alpha", 1)
    return (a - b * alpha if alpha != 1 else a - b) if call.kind == "sub" else (a + b * alpha if alpha != 1 else a + b)


def _axis(tape: Tape, call: Call) -> int:
    name = call.inputs[0]
    return int(tape.axes[name] + tape.values[call.name].ndim - tape.values[name].ndim)


def _neg(run: Pass, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: -c}


def _mul(run: Pass, call: Call, c: Tensor) -> dict[str, Tensor]:
    factors = [call.options[n] for n in _TWO]
    if len(call.inputs) == 2:
        sizes = [run.tape.values[f.name].numel() for f in factors]
        if sizes[0] != sizes[1]:  # the smaller one scales the larger one
            gate = sizes.index(min(sizes))
            name = factors[1 - gate].name
            return {name: _to(run, call, name, run.multiply(c, factors[gate], call))}
        result: dict[str, Tensor] = {}
        for factor, other in (factors, factors[::-1]):  # half each: AttnLRP, eq. 14
            part = _to(run, call, factor.name, run.multiply(c, other, call)) / 2
            result[factor.name] = result[factor.name] + part if factor.name in result else part
        return result
    name = call.inputs[0]
    other = factors[1] if is_ref(factors[0], name) else factors[0]
    return {name: _to(run, call, name, run.multiply(c, run.parameter(other), call))}


def _div(run: Pass, call: Call, c: Tensor) -> dict[str, Tensor]:
    name = call.inputs[0]
    divisor = run.tape.resolve(run.parameter(call.options["other"]))
    return {name: _to(run, call, name, run.multiply(c, 1 / divisor, call))}


def _binary(function: Any) -> Any:
    return lambda tape, call: function(*(tape.resolve(call.options[n]) for n in _TWO))


def _pow(run: Pass, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, exponent = call.inputs[0], call.options["exponent"]
    return {name: times(c, run.value(name) ** (exponent - 1), run.axis(call.name))}


def _addcmul(run: Pass, call: Call, c: Tensor) -> dict[str, Tensor]:
    """``input + value * tensor1 * tensor2`` with one factor at most that depends on the images."""
    result: dict[str, Tensor] = {}
    o = call.options
    operands = [("input", None), ("tensor1", "tensor2"), ("tensor2", "tensor1")]
    for operand, other in operands:
        value = o[operand]
        if isinstance(value, Ref) and value.name in call.inputs:
            part = c if other is None else run.multiply(c, run.parameter(o[other]), call) * o.get("value", 1)
            part = _to(run, call, value.name, part)
            result[value.name] = result[value.name] + part if value.name in result else part
    return result


def _addcmul_absorbed(run: Pass, call: Call, c: Tensor) -> Tensor:
    o = call.options
    known = {n: isinstance(o[n], Ref) and o[n].name in call.inputs for n in ("input", "tensor1", "tensor2")}
    absorbed = torch.zeros_like(c) if known["input"] else run.multiply(c, o["input"], call)
    if known["tensor1"] or known["tensor2"]:
        return absorbed
    product = run.multiply(run.multiply(c, o["tensor1"], call), o["tensor2"], call)
    absorbed += product * o.get("value", 1)
    return absorbed


def _extreme(run: Pass, call: Call, c: Tensor) -> dict[str, Tensor]:
    """All relevance to the winner, the first operand where both are equal."""
    values = [run.tape.resolve(call.options[n]) for n in _TWO]
    first = values[0] >= values[1] if call.kind == "maximum" else values[0] <= values[1]
    result: dict[str, Tensor] = {}
    for operand, mask in zip(_TWO, (first, ~first), strict=True):
        value = call.options[operand]
        if isinstance(value, Ref) and value.name in call.inputs:
            result[value.name] = _to(run, call, value.name, run.multiply(c, mask, call))
    return result


OPS: dict[str, Op] = {
    "add": Op(_add, _add_forward, _axis, absorbed=_add_absorbed),
    "sub": Op(_add, _add_forward, _axis, absorbed=_add_absorbed),
    "neg": Op(_neg),
    "mul": Op(_mul, _binary(operator.mul), _axis),
    "div": Op(_div, _binary(operator.truediv), _axis),
    "pow": Op(_pow),
    "addcmul": Op(_addcmul, axis=_axis, absorbed=_addcmul_absorbed),
    "maximum": Op(_extreme, axis=_axis, conserves=False),
    "minimum": Op(_extreme, axis=_axis, conserves=False),
}
