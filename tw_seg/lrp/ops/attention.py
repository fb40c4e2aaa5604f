"""Softmax and products of matrices, as in AttnLRP (Achtibat et al. 2024, arXiv 2402.05602).

Softmax: expansion of first order at its input (eq. 13). A product of two activations: relevance in proportion to
the terms, half to each factor (eq. 14 and 15), with the epsilon of the call's rule added to twice the output.
"""

from __future__ import annotations

import math
import operator
import string
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op
from tw_seg.lrp.core.linear_map import accumulate, expand, times, unbroadcast
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.op import (
    Known,
    bind_reduction,
    is_input,
    keep_batch,
    never_negative,
    of_any_sign,
    reduced_axis,
    resolve_dims,
    spell,
    stabilize_terms,
)

_TWO = ("input", "other")


def _softmax(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    dim = call.options["dim"] % c.ndim
    keep_batch(backward.tape, call, (dim,))
    weights, axis = backward.value(call.name), backward.axis(call.name)
    mean = times(c, weights, axis).sum(dim, keepdim=True)
    return {call.inputs[0]: times(c - mean, weights, axis).to(backward.tape.values[call.inputs[0]].dtype)}


def _logsumexp(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, axis = call.inputs[0], backward.axis(call.inputs[0])
    u, y = backward.value(name), backward.value(call.name)
    if not call.options.get("keepdim"):
        for dim in sorted(resolve_dims(call.options["dim"], u.ndim)):
            c, y = c.unsqueeze(dim), y.unsqueeze(dim)
    weights = torch.exp(u - y.masked_fill(y == -math.inf, 0.0))
    return {name: times(c, weights, axis)}


def _matmul_axis(tape: Tape, call: Call) -> int:
    name = call.inputs[0]
    value, output = tape.values[name], tape.values[call.name]
    axis = tape.axes[name] - value.ndim
    others = [tape.resolve(call.options[n]) for n in _TWO]
    # One image a row of the first matrix, or a column of the second one, and the other matrix a constant.
    alone = [is_input(call, call.options[n]) for n in _TWO] == [axis == -2, axis == -1]
    if (axis >= -2 and not alone) or min(o.ndim for o in others) < 2:
        raise UnsupportedOpError(
            f"{call.place}: matmul ({call.name!r}) of {[tuple(o.shape) for o in others]} with the batch at "
            f"axis {tape.axes[name]} has no relevance rule; the batch must come before the matrices"
        )
    return int(output.ndim + axis)


def _matmul(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    left, right = (call.options[n] for n in _TWO)
    known = [is_input(call, left), is_input(call, right)]
    c = stabilize_terms(backward, call, c, sum(known))
    result: dict[str, Tensor] = {}
    for position, (operand, other) in enumerate(((left, right), (right, left))):
        if not known[position]:
            continue
        factor, per_sample = _matrices(backward, call, other)
        part = _product(c, factor.mT, backward.axis(call.name), per_sample, position == 0)
        part = unbroadcast(part, backward.tape.values[operand.name].shape, backward.axis(operand.name))
        accumulate(result, operand.name, part)
    return result


def _matrices(backward: Backward, call: Call, value: Any) -> tuple[Tensor, bool]:
    """A factor for the decoded samples with as many axes as the output, and whether it has rows of samples."""
    value = backward.tape.resolve(backward.parameter(value))
    output, axis = backward.tape.values[call.name], backward.axis(call.name)
    value = value.reshape(*[1] * (output.ndim - value.ndim), *value.shape)
    if axis >= output.ndim - 2 or (value.shape[axis] == 1 and output.shape[axis] != 1):
        return value, False
    return backward.rows(value, axis), True


def _product(c: Tensor, factor: Tensor, axis: int, per_sample: bool, after: bool) -> Tensor:
    """``c @ factor`` or ``factor @ c``, the factor shared by the classes."""
    if not per_sample:
        return c @ factor if after else factor @ c
    c, factor = c.unflatten(axis, (-1, factor.shape[axis])), factor.unsqueeze(axis)
    return (c @ factor if after else factor @ c).flatten(axis, axis + 1)


def _matmul_forward(tape: Tape, call: Call) -> Tensor:
    return torch.matmul(*(tape.resolve(call.options[n]) for n in _TWO))


def _equation(tape: Tape, call: Call) -> tuple[list[str], str, list[Any]]:
    """Subscripts of the operands, of the output, and the operands; an ellipsis as letters."""
    operands = list(call.options["operands"])
    equation = str(call.options["equation"]).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        counts = {letter: left.count(letter) for letter in sorted(set(left) - set(",."))}
        right = ("..." if "..." in left else "") + "".join(k for k, n in counts.items() if n == 1)
    free = iter(sorted(set(string.ascii_letters) - set(equation)))
    ranks = [tape.resolve(o).ndim - len(t.replace("...", "")) for t, o in zip(terms, operands, strict=True)]
    longest = max([0, *(r for r, t in zip(ranks, terms, strict=True) if "..." in t)])
    dots = "".join(next(free) for _ in range(longest))
    terms = [t.replace("...", dots[len(dots) - r :]) for t, r in zip(terms, ranks, strict=True)]
    return terms, right.replace("...", dots), operands


def _einsum_axis(tape: Tape, call: Call) -> int:
    terms, output, operands = _equation(tape, call)
    for term, operand in zip(terms, operands, strict=True):
        if is_input(call, operand):
            letter = term[tape.axes[operand.name]]
            if letter in output and len(set(term)) == len(term):
                return output.index(letter)
    raise UnsupportedOpError(f"{call.place}: einsum {call.options['equation']!r} ({call.name!r}) sums over the batch")


def _einsum(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    terms, output, operands = _equation(backward.tape, call)
    batch = output[backward.axis(call.name)]
    values = []
    for term, operand in zip(terms, operands, strict=True):
        value = backward.tape.resolve(backward.parameter(operand))
        if batch in term and value.shape[term.index(batch)] != 1:
            place = term.index(batch)
            value = expand(backward.rows(value, place), c, place, of=backward.axis(call.name))
        values.append(value)
    known = [is_input(call, operand) for operand in operands]
    c = stabilize_terms(backward, call, c, sum(known))
    result: dict[str, Tensor] = {}
    for i, operand in enumerate(operands):
        if not known[i]:
            continue
        others = [(t, v) for j, (t, v) in enumerate(zip(terms, values, strict=True)) if j != i]
        have = set(output).union(*(t for t, _ in others))
        kept = "".join(letter for letter in terms[i] if letter in have)
        part = torch.einsum(",".join([output, *(t for t, _ in others)]) + "->" + kept, c, *(v for _, v in others))
        for position, letter in enumerate(terms[i]):
            if letter not in have:  # summed over by itself: every element gets the same
                part = part.unsqueeze(position)
        shape = list(backward.tape.values[operand.name].shape)
        shape[terms[i].index(batch)] = c.shape[backward.axis(call.name)]
        part = part.expand(shape)
        accumulate(result, operand.name, part)
    return result


def _bind_einsum(call: Call, known: Known) -> Call | str:
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    inputs = tuple(operand.name for operand in operands if known.is_relevant(operand))
    op = _EINSUM if len(operands) > 1 else _EINSUM_OF_ONE
    return replace(call, op=op, inputs=inputs, options={"equation": equation, "operands": tuple(operands)})


def _describe_product(backward: Backward, call: Call, handed: frozenset[str]) -> str:
    rule = backward.rules[call.name]
    if len(call.inputs) == 1:
        return str(rule)
    return "half each" if rule.is_plain else f"half each, {rule}"


_PRODUCT = Op(
    "matmul",
    _matmul,
    Memory.NEW,
    of_any_sign,
    Channels.KEPT,
    functions={operator.matmul: _TWO, **spell(_TWO, "matmul bmm mm")},
    group="product",
    forward=_matmul_forward,
    axis=_matmul_axis,
    stabilised=lambda call: len(call.inputs),
    text=_describe_product,
    factors=_TWO,
)

_EINSUM = replace(
    _PRODUCT,
    kind="einsum",
    adjoint=_einsum,
    functions={torch.einsum: ("equation",)},
    bind=_bind_einsum,
    forward=None,
    axis=_einsum_axis,
    factors=("operands",),
)

_EINSUM_OF_ONE = replace(_EINSUM, memory=Memory.SHARED)  # it may be a view

OPS = (
    Op(
        "softmax",
        _softmax,
        Memory.NEW,
        never_negative,
        Channels.KEPT,
        modules=(nn.Softmax,),
        functions=spell(("input", "dim"), "softmax"),
        options=("dim",),
        text="first order",
        conserves=False,
        gate=True,
        probabilities=True,
    ),
    Op(
        "logsumexp",
        _logsumexp,
        Memory.NEW,
        of_any_sign,
        Channels.KEPT,
        functions=spell(("input", "dim", "keepdim"), "logsumexp"),
        bind=bind_reduction,
        axis=reduced_axis,
        text="first order",
        conserves=False,
    ),
    _PRODUCT,
    _EINSUM,
)
