"""Sums, products and quotients of two values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Forward, Memory, Op, refs
from tw_seg.lrp.core.linear_map import accumulate, times, unbroadcast
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.op import (
    Known,
    aligned_axis,
    bind,
    bind_first,
    is_input,
    name_functions,
    name_rule,
    no_values,
    of_any_sign,
    only_stabilised,
    sign_of_operands,
    spell,
    stabilize_terms,
)

_ADD = ("input", "other", "alpha")
_TWO = ("input", "other")
_POWER = ("input", "exponent")


def _sum_to_shape(backward: Backward, call: Call, name: str, c: Tensor) -> Tensor:
    """A coefficient at the output summed to the shape of an operand that was broadcast."""
    return unbroadcast(c, backward.tape.values[name].shape, backward.axis(name))


def _terms(call: Call) -> list[tuple[Any, Any]]:
    """The operands of a sum or difference and their factors."""
    alpha = call.options.get("alpha", 1)
    return [(call.options["input"], 1), (call.options["other"], -alpha if call.kind == "sub" else alpha)]


def _add(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    c = stabilize_terms(backward, call, c)
    result: dict[str, Tensor] = {}
    for value, factor in _terms(call):
        if is_input(call, value):
            accumulate(result, value.name, _sum_to_shape(backward, call, value.name, c if factor == 1 else c * factor))
    return result


def _add_absorbed(backward: Backward, call: Call, c: Tensor) -> Tensor:
    c = stabilize_terms(backward, call, c)
    absorbed = torch.zeros_like(c)
    for value, factor in _terms(call):
        if not is_input(call, value):
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
            return {name: _sum_to_shape(backward, call, name, backward.multiply(c, factors[gate], call))}
        result: dict[str, Tensor] = {}
        for factor, other in (factors, factors[::-1]):  # half each: AttnLRP, eq. 14
            accumulate(
                result, factor.name, _sum_to_shape(backward, call, factor.name, backward.multiply(c, other, call)) / 2
            )
        return result
    name = call.inputs[0]
    other = factors[1] if is_input(call, factors[0]) else factors[0]
    return {name: _sum_to_shape(backward, call, name, backward.multiply(c, backward.parameter(other), call))}


def _div(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name = call.inputs[0]
    divisor = backward.tape.resolve(backward.parameter(call.options["other"]))
    return {name: _sum_to_shape(backward, call, name, backward.multiply(c, 1 / divisor, call))}


def _run_on_two(function: Callable[[Any, Any], Any]) -> Forward:
    return lambda tape, call: function(*(tape.resolve(call.options[n]) for n in _TWO))


def _pow(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, axis = call.inputs[0], backward.axis(call.name)
    exponent, _ = backward.operand(backward.parameter(call.options["exponent"]), backward.tape.values[call.name], axis)
    return {name: _sum_to_shape(backward, call, name, times(c, backward.value(name) ** (exponent - 1), axis))}


def _addcmul(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    """``input + value * tensor1 * tensor2`` with one factor at most that depends on the images."""
    result: dict[str, Tensor] = {}
    o = call.options
    operands = [("input", None), ("tensor1", "tensor2"), ("tensor2", "tensor1")]
    for operand, other in operands:
        value = o[operand]
        if is_input(call, value):
            part = c if other is None else backward.multiply(c, backward.parameter(o[other]), call) * o.get("value", 1)
            accumulate(result, value.name, _sum_to_shape(backward, call, value.name, part))
    return result


def _addcmul_absorbed(backward: Backward, call: Call, c: Tensor) -> Tensor:
    o = call.options
    known = {n: is_input(call, o[n]) for n in ("input", "tensor1", "tensor2")}
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
        if is_input(call, value):
            accumulate(result, value.name, _sum_to_shape(backward, call, value.name, backward.multiply(c, mask, call)))
    return result


def _bind_product(call: Call, known: Known) -> Call | str:
    """Relevance goes to the factors that do not come from a gate."""
    bound = bind(call, known)
    if isinstance(bound, str) or len(bound.inputs) != 2:
        return bound
    for gates in (
        [_comes_from_gate(name, known) for name in bound.inputs],
        [_comes_from_scale(name, known) for name in bound.inputs],
    ):
        if gates[0] != gates[1]:
            return replace(bound, inputs=(bound.inputs[gates.index(False)],))
    return bound


def _comes_from_gate(name: str, known: Known) -> bool:
    call = known.calls.get(name)
    while call is not None and len(call.inputs) == 1 and (call.op.spreads or call.op.memory is not Memory.NEW):
        call = known.calls.get(call.inputs[0])
    return call is not None and call.op.gate


def _comes_from_scale(name: str, known: Known) -> bool:
    """Whether a value is a statistic, or one that constants were added to, multiplied with or put into a power."""
    call = known.calls.get(name)
    while call is not None and len(call.inputs) == 1 and not call.op.scales:
        kept = call.op.spreads or call.op.memory is not Memory.NEW
        if not (kept or call.op.group == "addition" or call.kind in ("mul", "div", "pow", "clamp", "mean")):
            return False
        call = known.calls.get(call.inputs[0])
    return call is not None and call.op.scales


def _describe_product(backward: Backward, call: Call, handed: frozenset[str]) -> str:
    others = [name for name in refs((call.args, call.kwargs)) if name not in call.inputs]
    # A factor that gets no relevance and depends on the images is a gate.
    if len(handed) < len(set(call.inputs)) or any(name in backward.tape.axes for name in others):
        return "to the signal"
    return "half each" if len(call.inputs) > 1 else "pass"


def _bind_quotient(call: Call, known: Known) -> Call | str:
    rounding = call.options.get("rounding_mode")
    return bind_first(call, known) if rounding is None else f"{call.spelling}(rounding_mode={rounding!r})"


def _bind_power(call: Call, known: Known) -> Call | str:
    bound = bind_first(call, known)
    if not isinstance(bound, str) and known.is_relevant(call.options.get("exponent")):
        return f"{call.spelling} with an exponent that depends on the images"
    return bound


def _bind_addcmul(call: Call, known: Known) -> Call | str:
    relevant = [known.is_relevant(call.options[name]) for name in ("tensor1", "tensor2")]
    if all(relevant):
        return f"{call.spelling} of three values that depend on the images"
    return bind(call if any(relevant) else replace(call, op=_ADDCMUL_OF_CONSTANTS), known)


_SUM = Op(
    "add",
    _add,
    Memory.NEW,
    sign_of_operands,
    Channels.KEPT,
    functions={**name_functions(_ADD, operator.add, operator.iadd), **spell(_ADD, "add")},
    group="addition",
    forward=_add_forward,
    axis=aligned_axis,
    reads=only_stabilised,
    absorbed=_add_absorbed,
    stabilised=lambda call: 1,
    text=name_rule,
    rescales=True,
)

MAXIMUM = Op(
    "maximum",
    _extreme,
    Memory.NEW,
    of_any_sign,
    Channels.KEPT,
    functions=spell(_TWO, "maximum"),
    axis=aligned_axis,
    text="winner",
    conserves=False,
)

_ADDCMUL = Op(
    "addcmul",
    _addcmul,
    Memory.NEW,
    of_any_sign,
    Channels.KEPT,
    functions=spell(("input", "tensor1", "tensor2", "value"), "addcmul"),
    bind=_bind_addcmul,
    axis=aligned_axis,
    absorbed=_addcmul_absorbed,
    factors=("tensor1", "tensor2"),
)

_ADDCMUL_OF_CONSTANTS = replace(_ADDCMUL, factors=())  # the product is added: no coefficient meets it

OPS = (
    _SUM,
    replace(
        _SUM,
        kind="sub",
        sign=of_any_sign,
        functions={**name_functions(_ADD, operator.sub, operator.isub), **spell(_ADD, "sub subtract")},
    ),
    Op(
        "neg",
        _neg,
        Memory.NEW,
        of_any_sign,
        Channels.KEPT,
        functions={operator.neg: ("input",), **spell(("input",), "neg negative")},
        reads=no_values,
        rescales=True,
    ),
    Op(
        "mul",
        _mul,
        Memory.NEW,
        sign_of_operands,
        Channels.KEPT,
        functions={**name_functions(_TWO, operator.mul, operator.imul), **spell(_TWO, "mul multiply")},
        bind=_bind_product,
        forward=_run_on_two(operator.mul),
        axis=aligned_axis,
        text=_describe_product,
        factors=_TWO,
        rescales=True,
    ),
    Op(
        "div",
        _div,
        Memory.NEW,
        of_any_sign,
        Channels.KEPT,
        functions={
            **name_functions(_TWO, operator.truediv, operator.itruediv),
            **spell(_TWO, "div divide true_divide"),
        },
        bind=_bind_quotient,
        forward=_run_on_two(operator.truediv),
        axis=aligned_axis,
        text="divisor constant",
        factors=("other",),
        rescales=True,
    ),
    Op(
        "pow",
        _pow,
        Memory.NEW,
        of_any_sign,
        Channels.KEPT,
        functions={operator.pow: _POWER, **spell(_POWER, "pow")},
        bind=_bind_power,
        axis=aligned_axis,
        factors=("exponent",),
    ),
    _ADDCMUL,
    MAXIMUM,
    replace(MAXIMUM, kind="minimum", functions=spell(_TWO, "minimum")),
)
