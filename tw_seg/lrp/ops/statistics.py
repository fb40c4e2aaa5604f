"""Lengths, standard deviations and variances along axes, where they are features and not what is divided by.

Each is a sum of powers and its root: relevance goes to the elements in proportion to what they add, the mean that is
subtracted likewise. So it is conserved, and for lengths and deviations it is input x gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op
from tw_seg.lrp.core.linear_map import times
from tw_seg.lrp.ops.op import Known, bind_reduction, never_negative, reduced_axis, resolve_dims, spell

_NORM = ("input", "p", "dim", "keepdim")
_ORDER = ("input", "ord", "dim", "keepdim")
_SPREAD = ("input", "dim", "unbiased", "keepdim")


def _restore_axes(call: Call, value: Tensor, ndim: int) -> Tensor:
    """A value of the output with the axes that the call dropped."""
    if not call.options.get("keepdim"):
        for dim in sorted(resolve_dims(call.options["dim"], ndim)):
            value = value.unsqueeze(dim)
    return value


def _divide(value: Tensor, divisor: Tensor) -> Tensor:
    """0 where the divisor is 0."""
    positive = divisor > 0
    return torch.where(positive, value / torch.where(positive, divisor, torch.ones_like(divisor)), 0.0)


def _order(call: Call) -> Any:
    order = call.options.get("p", call.options.get("ord"))
    return 2 if order is None or order == "fro" else order


def _norm(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, p = call.inputs[0], _order(call)
    u = backward.value(name)
    y = _restore_axes(call, backward.value(call.name), u.ndim)
    if p == 2:
        slope = _divide(u, y)
    elif p == math.inf:
        winners = (u.abs() == y).to(u.dtype)
        slope = u.sign() * winners / winners.sum(resolve_dims(call.options["dim"], u.ndim), keepdim=True)
    else:
        slope = u.sign() * _divide(u.abs(), y) ** (p - 1) * (u != 0)
    return {name: times(_restore_axes(call, c, u.ndim), slope, backward.axis(name))}


def _spread(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, o = call.inputs[0], call.options
    u = backward.value(name)
    dims = resolve_dims(o["dim"], u.ndim)
    correction = o.get("correction")
    correction = int(o.get("unbiased", True)) if correction is None else correction
    share = (u - u.mean(dims, keepdim=True)) / (math.prod(u.shape[d] for d in dims) - correction)
    if call.kind == "std":
        share = _divide(share, _restore_axes(call, backward.value(call.name), u.ndim))
    return {name: times(_restore_axes(call, c, u.ndim), share, backward.axis(name))}


def _bind_norm(call: Call, known: Known) -> Call | str:
    p, dim = _order(call), call.options.get("dim")
    axes = len(dim) if isinstance(dim, (tuple, list)) else 1
    if not isinstance(p, (int, float)) or p < 1:
        return f"{call.spelling} of order {p!r}"
    if call.spelling == "linalg_norm" and axes == 2 and call.options.get("ord") is not None:
        return f"{call.spelling} of a matrix"
    return bind_reduction(call, known)


def _bind_spread(call: Call, known: Known) -> Call | str:
    if isinstance(call.options.get("dim"), bool):  # ``unbiased``, of all axes
        return f"{call.spelling} over every axis"
    return bind_reduction(call, known)


_LENGTH = Op(
    "norm",
    _norm,
    Memory.NEW,
    never_negative,
    Channels.KEPT,
    functions={
        **spell(_NORM, "norm"),
        torch.linalg.norm: _ORDER,
        torch.linalg.vector_norm: _ORDER,
    },
    bind=_bind_norm,
    axis=reduced_axis,
    text="in proportion",
    scales=True,
)

OPS = (
    _LENGTH,
    replace(_LENGTH, kind="std", adjoint=_spread, functions=spell(_SPREAD, "std"), bind=_bind_spread),
    replace(_LENGTH, kind="var", adjoint=_spread, functions=spell(_SPREAD, "var"), bind=_bind_spread),
)
