"""Pools, and the same along named axes: averages and sums are linear maps, of maxima relevance follows the winners."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core import linear_map as maps
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op, Ref
from tw_seg.lrp.core.linear_map import LinearMap, Parts, expand, max_pool_adjoint
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.arithmetic import MAXIMUM
from tw_seg.lrp.ops.fusion import apply_rule, read_unless_plain
from tw_seg.lrp.ops.op import (
    Known,
    bind,
    bind_reduction,
    keep_batch,
    keep_first,
    name_functions,
    name_rule,
    no_values,
    only_input,
    reduced_axis,
    resolve_dims,
    sign_of_inputs,
    sign_of_numbers,
    spell,
)

_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_ADAPTIVE_MAX_POOL = ("input", "output_size", "return_indices")
_REDUCE = ("input", "dim", "keepdim")


def _avg_pool(backward: Backward, call: Call) -> LinearMap:
    keep_first(call, backward.axis(call.inputs[0]))
    size = tuple(backward.tape.values[call.inputs[0]].shape[2:])
    settings = {k: call.options[k] for k in _AVG_POOL if k in call.options}
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(size)]
    return maps.avg_pool(
        lambda x: pool(x, **settings),
        lambda c: maps.avg_pool_adjoint(c, input_size=size, **settings),
    )


def _adaptive_avg_pool(backward: Backward, call: Call) -> LinearMap:
    keep_first(call, backward.axis(call.inputs[0]))
    size = tuple(backward.tape.values[call.inputs[0]].shape[2:])
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
    return maps.avg_pool(
        lambda x: pool(x, call.options["output_size"]),
        lambda c: maps.adaptive_avg_pool_adjoint(c, size),
    )


def _reduce(backward: Backward, call: Call) -> LinearMap:
    name = call.inputs[0]
    shape = backward.tape.values[name].shape
    dims = resolve_dims(call.options.get("dim"), len(shape))
    keep_batch(backward.tape, call, dims)
    keepdim = bool(call.options.get("keepdim", False))
    count = 1
    for dim in dims:
        count = count * shape[dim]
    divisor = count if call.kind == "mean" else 1

    def adjoint(c: Tensor, weight: Tensor | None) -> Tensor:
        if not keepdim:
            for dim in sorted(dims):
                c = c.unsqueeze(dim)
        spread = c if divisor == 1 else c / divisor
        return spread.expand(*(n if i in dims else c.shape[i] for i, n in enumerate(shape)))

    return LinearMap(
        None,
        None,
        lambda a, w, b: a.sum(dims, keepdim=keepdim) / divisor,
        adjoint,
        backward.axis(name),
        backward.axis(call.name),
    )


def _max_pool(tape: Tape, call: Call) -> Tensor:
    o, a = call.options, tape.values[call.inputs[0]]
    keep_first(call, tape.axes[call.inputs[0]])
    pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[a.ndim]
    value, tape.saved[call.name] = pool(
        a,
        o["kernel_size"],
        o.get("stride"),
        o.get("padding", 0),
        o.get("dilation", 1),
        ceil_mode=o.get("ceil_mode", False),
        return_indices=True,
    )
    return value


def _adaptive_max_pool(tape: Tape, call: Call) -> Tensor:
    a = tape.values[call.inputs[0]]
    keep_first(call, tape.axes[call.inputs[0]])
    pool = {3: F.adaptive_max_pool1d, 4: F.adaptive_max_pool2d, 5: F.adaptive_max_pool3d}[a.ndim]
    value, tape.saved[call.name] = pool(a, call.options["output_size"], return_indices=True)
    return value


def _to_winners(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name = call.inputs[0]
    winners = backward.rows(backward.tape.saved[call.name])
    return {name: max_pool_adjoint(c, winners, backward.tape.values[name].shape[2:])}


def _amax(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    """To the first of the largest values along the axes."""
    name = call.inputs[0]
    a, axis = backward.value(name), backward.axis(name)
    dims = sorted(resolve_dims(call.options.get("dim"), a.ndim))
    if not call.options.get("keepdim"):
        for dim in dims:
            c = c.unsqueeze(dim)
    rest = [d for d in range(a.ndim) if d not in dims]
    flat = a.permute(*rest, *dims).flatten(len(rest))
    winner = F.one_hot(flat.argmax(-1), flat.shape[-1]).reshape(a.permute(*rest, *dims).shape)
    order = [*rest, *dims]
    mask = winner.permute([order.index(d) for d in range(a.ndim)]).to(c.dtype)
    return {name: expand(mask, c, axis) * c}


def _max(backward: Backward, call: Call, c: Parts) -> dict[str, Tensor]:
    """``max`` along an axis returns values and indices; only the values carry relevance."""
    return _amax(backward, call, c[0])


def _avg_pool_sign(call: Call, nonnegative: Container[str]) -> bool:
    return sign_of_inputs(call, nonnegative) and sign_of_numbers(call)  # the divisor


def _bind_max(call: Call, known: Known) -> Call | str:
    second = call.options.get("dim")
    if not isinstance(second, Ref) or known.is_size(second):
        return bind_reduction(call, known)
    pair = (call.options["input"], second)
    options = {"input": pair[0], "other": pair[1]}
    of_two = replace(call, op=MAXIMUM, fx_op="call_function", target=torch.maximum, args=pair, kwargs={})
    return bind(replace(of_two, options=options), known)


_AVERAGE = Op(
    "avg_pool",
    apply_rule,
    Memory.NEW,
    _avg_pool_sign,
    Channels.FIRST,
    modules=(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    functions={
        F.avg_pool1d: ("input", *_AVG_POOL[:5]),
        **name_functions(("input", *_AVG_POOL), F.avg_pool2d, F.avg_pool3d),
    },
    options=_AVG_POOL,
    group="pool",
    reads=read_unless_plain,
    linear_map=_avg_pool,
    text=name_rule,
)

_MEAN = Op(
    "mean",
    apply_rule,
    Memory.NEW,
    sign_of_inputs,
    Channels.KEPT,
    functions=spell(_REDUCE, "mean"),
    bind=bind_reduction,
    group="pool",
    axis=reduced_axis,
    reads=read_unless_plain,
    linear_map=_reduce,
    text=name_rule,
)

_WINDOW_MAXIMUM = Op(
    "max_pool",
    _to_winners,
    Memory.NEW,
    sign_of_inputs,
    Channels.FIRST,
    modules=(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    functions={
        **name_functions(_MAX_POOL, F.max_pool1d, F.max_pool2d, F.max_pool3d),
        **name_functions(_MAX_POOL[:6], torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
    },
    options=_MAX_POOL[1:6],
    forward=_max_pool,
    reads=no_values,
    text="winner",
    fresh=True,
)

_LARGEST = Op(
    "amax",
    _amax,
    Memory.NEW,
    sign_of_inputs,
    Channels.KEPT,
    functions=spell(_REDUCE, "amax"),
    bind=bind_reduction,
    axis=reduced_axis,
    reads=only_input,
    text="winner",
)

OPS = (
    _AVERAGE,
    replace(
        _AVERAGE,
        kind="adaptive_avg_pool",
        sign=sign_of_inputs,
        modules=(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        functions=name_functions(
            ("input", "output_size"), F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d
        ),
        options=("output_size",),
        linear_map=_adaptive_avg_pool,
    ),
    _MEAN,
    replace(_MEAN, kind="sum", functions=spell(_REDUCE, "sum")),
    _WINDOW_MAXIMUM,
    replace(
        _WINDOW_MAXIMUM,
        kind="adaptive_max_pool",
        modules=(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        functions=name_functions(
            _ADAPTIVE_MAX_POOL, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d
        ),
        options=("output_size",),
        forward=_adaptive_max_pool,
    ),
    _LARGEST,
    replace(
        _LARGEST,
        kind="max",
        adjoint=_max,
        functions=spell(_REDUCE, "max"),
        bind=_bind_max,
        returns_tuple=True,
    ),
)
