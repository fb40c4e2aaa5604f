"""Sums, products and quotients of two values."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.linear_map import accumulate, times, unbroadcast
from tw_seg.lrp.ops.op import Functions, Op, aligned_axis, no_values, only_stabilised, receives, share

if TYPE_CHECKING:
    from tw_seg.lrp.core.backward import Backward
    from tw_seg.lrp.core.tape import Tape

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


def _to(backward: Backward, call: Call, name: str, c: Tensor) -> Tensor:
    """A coefficient at the output summed to the shape of an operand that was broadcast."""
    return unbroadcast(c, backward.tape.values[name].shape, backward.axis(name))


def _terms(call: Call) -> list[tuple[Any, Any]]:
    """The operands of a sum or difference and their factors."""
    alpha = call.options.get("alpha", 1)
    return [(call.options["input"], 1), (call.options["other"], -alpha if call.kind == "sub" else alpha)]


def _add(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    c = share(backward, call, c)
    result: dict[str, Tensor] = {}
    for value, factor in _terms(call):
        if receives(call, value):
            accumulate(result, value.name, _to(backward, call, value.name, c if factor == 1 else c * factor))
    return result


def _add_absorbed(backward: Backward, call: Call, c: Tensor) -> Tensor:
    c = share(backward, call, c)
    absorbed = torch.zeros_like(c)
    for value, factor in _terms(call):
        if not receives(call, value):
            absorbed = absorbed + backward.multiply(c, value, call) * factor
    return absorbed.masked_fill(c == 0, 0.0)  # minus infinity, as masks of attention add it, has no relevance


def _add_forward(tape: Tape, call: Call) -> Any:
    a, b = (tape.resolve(call.options[n]) for n in _TWO)
    alpha = call.options.get("alpha", 1)
    return (a - b * alpha if alpha != 1 else a - b) if call.kind == "sub" else (a + b * alpha if alpha != 1 else a + b)


def _neg(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: -c}


def _mul(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    factors = [call.options[n] for n in _TWO]
    if len(call.inputs) == 2:
        sizes = [backward.tape.values[f.name].numel() for f in factors]
        if sizes[0] != sizes[1]:  # the smaller one scales the larger one
            gate = sizes.index(min(sizes))
            name = factors[1 - gate].name
            return {name: _to(backward, call, name, backward.multiply(c, factors[gate], call))}
        result: dict[str, Tensor] = {}
        for factor, other in (factors, factors[::-1]):  # half each: AttnLRP, eq. 14
            accumulate(result, factor.name, _to(backward, call, factor.name, backward.multiply(c, other, call)) / 2)
        return result
    name = call.inputs[0]
    other = factors[1] if receives(call, factors[0]) else factors[0]
    return {name: _to(backward, call, name, backward.multiply(c, backward.parameter(other), call))}


def _div(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name = call.inputs[0]
    divisor = backward.tape.resolve(backward.parameter(call.options["other"]))
    return {name: _to(backward, call, name, backward.multiply(c, 1 / divisor, call))}


def _binary(function: Any) -> Any:
    return lambda tape, call: function(*(tape.resolve(call.options[n]) for n in _TWO))


def _pow(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, exponent = call.inputs[0], call.options["exponent"]
    return {name: times(c, backward.value(name) ** (exponent - 1), backward.axis(call.name))}


def _addcmul(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    """``input + value * tensor1 * tensor2`` with one factor at most that depends on the images."""
    result: dict[str, Tensor] = {}
    o = call.options
    operands = [("input", None), ("tensor1", "tensor2"), ("tensor2", "tensor1")]
    for operand, other in operands:
        value = o[operand]
        if receives(call, value):
            part = c if other is None else backward.multiply(c, backward.parameter(o[other]), call) * o.get("value", 1)
            accumulate(result, value.name, _to(backward, call, value.name, part))
    return result


def _addcmul_absorbed(backward: Backward, call: Call, c: Tensor) -> Tensor:
    o = call.options
    known = {n: receives(call, o[n]) for n in ("input", "tensor1", "tensor2")}
    absorbed = torch.zeros_like(c) if known["input"] else backward.multiply(c, o["input"], call)
    if known["tensor1"] or known["tensor2"]:
        return absorbed
    product = backward.multiply(backward.multiply(c, o["tensor1"], call), o["tensor2"], call)
    absorbed += product * o.get("value", 1)
    return absorbed


def _extreme(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    """All relevance to the winner, the first operand where both are equal."""
    values = [backward.tape.resolve(call.options[n]) for n in _TWO]
    first = values[0] >= values[1] if call.kind == "maximum" else values[0] <= values[1]
    result: dict[str, Tensor] = {}
    for operand, mask in zip(_TWO, (first, ~first), strict=True):
        value = call.options[operand]
        if receives(call, value):
            accumulate(result, value.name, _to(backward, call, value.name, backward.multiply(c, mask, call)))
    return result


OPS: dict[str, Op] = {
    "add": Op(_add, _add_forward, aligned_axis, reads=only_stabilised, absorbed=_add_absorbed),
    "sub": Op(_add, _add_forward, aligned_axis, reads=only_stabilised, absorbed=_add_absorbed),
    "neg": Op(_neg, reads=no_values),
    "mul": Op(_mul, _binary(operator.mul), aligned_axis),
    "div": Op(_div, _binary(operator.truediv), aligned_axis),
    "pow": Op(_pow),
    "addcmul": Op(_addcmul, axis=aligned_axis, absorbed=_addcmul_absorbed),
    "maximum": Op(_extreme, axis=aligned_axis, conserves=False),
    "minimum": Op(_extreme, axis=aligned_axis, conserves=False),
}
