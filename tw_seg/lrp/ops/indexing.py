"""Calls that take or write parts of a value: slices, items, splits, masks. Coefficients go to where parts came from."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op
from tw_seg.lrp.core.linear_map import Parts, accumulate, expand, unbroadcast
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.op import (
    Known,
    bind,
    bind_first,
    is_input,
    keep_batch,
    no_values,
    of_any_sign,
    resolve_dims,
    sign_of_inputs,
    spell,
)


def _split(backward: Backward, call: Call, c: Parts) -> dict[str, Tensor]:
    name, values = call.inputs[0], backward.tape.values[call.name]
    some = next(iter(c.values()))
    rows, axis = some.shape[backward.axis(call.name)], backward.axis(call.name)
    parts = []
    for position, value in enumerate(values):
        if position in c:
            parts.append(c[position])
        else:
            shape = list(value.shape)
            shape[axis] = rows
            parts.append(some.new_zeros(shape))
    dim = call.options.get("dim", 0)
    return {name: torch.cat(parts, dim) if call.kind == "split" else torch.stack(parts, dim)}


def _split_axis(tape: Tape, call: Call) -> int:
    value, axis = tape.values[call.inputs[0]], tape.axes[call.inputs[0]]
    dim = call.options.get("dim", 0) % value.ndim
    keep_batch(tape, call, (dim,))
    return int(axis - (dim < axis)) if call.kind == "unbind" else axis


def _part(backward: Backward, call: Call, c: Tensor) -> dict[str, Parts]:
    return {call.inputs[0]: {call.options["index"] % len(backward.tape.values[call.inputs[0]]): c}}


def _index(tape: Tape, call: Call) -> tuple[Any, ...]:
    """The index of a getitem, with its ellipsis and missing axes written out."""
    o, ndim = call.options, tape.values[call.inputs[0]].ndim
    if call.kind == "select":
        return (*[slice(None)] * (o["dim"] % ndim), tape.resolve(o["index"]))
    if call.kind == "narrow":
        start = tape.resolve(o["start"])
        return (*[slice(None)] * (o["dim"] % ndim), slice(start, start + tape.resolve(o["length"])))
    index = tape.resolve(o["index"])
    index = index if isinstance(index, tuple) else (index,)
    fill = [slice(None)] * (ndim - sum(i is not None and i is not ... for i in index))
    if any(i is ... for i in index):
        place = next(k for k, i in enumerate(index) if i is ...)
        return (*index[:place], *fill, *index[place + 1 :])
    return (*index, *fill)


def _place(tape: Tape, call: Call) -> tuple[int, int]:
    """Position of the batch axis in the index and in the output."""
    index, axis = _index(tape, call), tape.axes[call.inputs[0]]
    dim = out = 0
    for position, i in enumerate(index):
        if i is None:
            out += 1
            continue
        if dim == axis:
            if i != slice(None):
                keep_batch(tape, call, (axis,))
            return position, out
        dim += 1
        out += isinstance(i, (slice, list, Tensor))
    return len(index), out + axis - dim


def _getitem_axis(tape: Tape, call: Call) -> int:
    return _place(tape, call)[1]


def _getitem(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    index = _index(backward.tape, call)
    spread = c.new_zeros(backward.shape(call, c))
    if any(isinstance(i, (Tensor, list)) for i in index):  # such an index may repeat
        grid = torch.arange(spread.numel(), device=c.device).reshape(spread.shape)[index]
        return {call.inputs[0]: spread.flatten().index_add(0, grid.flatten(), c.flatten()).reshape(spread.shape)}
    spread[index] = c
    return {call.inputs[0]: spread}


def _setitem_forward(tape: Tape, call: Call) -> Tensor:
    """Out of place: what reads the tensor afterwards reads this value."""
    value: Tensor = tape.resolve(call.options["input"]).clone()
    value[tape.resolve(call.options["index"])] = tape.resolve(call.options["other"])
    return value


def _setitem_axis(tape: Tape, call: Call) -> int:
    whole = call.options["input"]
    if is_input(call, whole):
        _place(tape, call)  # refuses an index into the batch
        return tape.axes[call.inputs[0]]
    index = call.options["index"]
    first = index[0] if isinstance(index, tuple) else index
    if tape.axes[call.inputs[0]] != 0 or not (first is ... or first == slice(None)):
        raise UnsupportedOpError(
            f"{call.place}: setitem ({call.name!r}) writes activations into a tensor whose batch axis is "
            "not the first; write them with cat or stack"
        )
    return 0


def _setitem(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    index = backward.tape.resolve(call.options["index"])
    result: dict[str, Tensor] = {}
    whole, part = call.options["input"], call.options["other"]
    if is_input(call, whole):
        kept = torch.ones_like(backward.tape.values[call.name], dtype=torch.bool)
        kept[index] = False
        accumulate(result, whole.name, backward.multiply(c, kept, call))
    if is_input(call, part):
        shape = backward.tape.values[part.name].shape
        accumulate(result, part.name, unbroadcast(c[index], shape, backward.axis(part.name)))
    return result


def _index_select(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    dim = resolve_dims(call.options["dim"], c.ndim)
    keep_batch(backward.tape, call, dim)
    index = backward.tape.resolve(call.options["index"])
    return {call.inputs[0]: c.new_zeros(backward.shape(call, c)).index_add(dim[0], index, c)}


def _gather(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    (dim,) = resolve_dims(call.options["dim"], c.ndim)
    keep_batch(backward.tape, call, (dim,))
    axis = backward.axis(call.name)
    places = expand(backward.rows(backward.tape.resolve(call.options["index"]), axis), c, axis)
    return {call.inputs[0]: c.new_zeros(backward.shape(call, c)).scatter_add(dim, places, c)}


def _masked_fill(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: backward.multiply(c, ~backward.tape.resolve(call.options["mask"]), call)}


def _masked_fill_forward(tape: Tape, call: Call) -> Tensor:
    return torch.masked_fill(*(tape.resolve(call.options[n]) for n in ("input", "mask", "value")))


def _where(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    condition = backward.tape.resolve(call.options["condition"])
    result: dict[str, Tensor] = {}
    for operand, mask in (("input", condition), ("other", ~condition)):
        value = call.options[operand]
        if is_input(call, value):
            part = unbroadcast(
                backward.multiply(c, mask, call), backward.tape.values[value.name].shape, backward.axis(value.name)
            )
            accumulate(result, value.name, part)
    return result


def _bind_getitem(call: Call, known: Known) -> Call | str:
    whole, index = call.options["input"], call.options["index"]
    if not known.is_tuple(whole):
        return bind(call, known)
    if not isinstance(index, int):
        return f"{call.spelling} of several parts at once"
    return replace(call, op=_PART, inputs=(whole.name,))


def _bind_part(call: Call, known: Known) -> Call | str:
    """``max(...).values``."""
    whole, name = call.args
    if not known.is_tuple(whole):
        return call.spelling
    return replace(call, inputs=(whole.name,), options={"index": ("values", "indices").index(str(name))})


_PART = Op(
    "part",
    _part,
    Memory.SHARED,
    sign_of_inputs,
    Channels.KEPT,
    functions={getattr: ("input", "name")},
    bind=_bind_part,
    reads=no_values,
)

_SPLIT = Op(
    "split",
    _split,
    Memory.SHARED,
    sign_of_inputs,
    Channels.KEPT,
    functions={
        **spell(("input", "chunks", "dim"), "chunk"),
        **spell(("input", "sizes", "dim"), "split split_with_sizes"),
        **spell(("input", "sections", "dim"), "tensor_split"),
    },
    axis=_split_axis,
    reads=no_values,
    returns_tuple=True,
)

_ITEM = Op(
    "getitem",
    _getitem,
    Memory.SHARED,
    sign_of_inputs,
    Channels.KEPT,
    functions={operator.getitem: ("input", "index")},
    bind=_bind_getitem,
    axis=_getitem_axis,
    reads=no_values,
    rearranges=True,
)

_ALONG_AXIS = replace(_ITEM, bind=None, rearranges=False)

OPS = (
    _SPLIT,
    replace(_SPLIT, kind="unbind", functions=spell(("input", "dim"), "unbind")),
    _PART,
    _ITEM,
    replace(_ALONG_AXIS, kind="select", functions=spell(("input", "dim", "index"), "select")),
    replace(
        _ALONG_AXIS,
        kind="narrow",
        functions=spell(("input", "dim", "start", "length"), "narrow"),
    ),
    Op(
        "setitem",
        _setitem,
        Memory.NEW,  # it is run out of place
        of_any_sign,
        Channels.KEPT,
        functions={operator.setitem: ("input", "index", "other")},
        forward=_setitem_forward,
        axis=_setitem_axis,
        conserves=False,
    ),
    Op(
        "index_select",
        _index_select,
        Memory.NEW,
        sign_of_inputs,
        Channels.KEPT,
        functions=spell(("input", "dim", "index"), "index_select"),
        reads=no_values,
    ),
    Op(
        "gather",
        _gather,
        Memory.NEW,
        sign_of_inputs,
        Channels.KEPT,
        functions=spell(("input", "dim", "index"), "gather"),
        reads=no_values,
    ),
    Op(
        "masked_fill",
        _masked_fill,
        Memory.NEW,
        of_any_sign,
        Channels.KEPT,
        functions=spell(("input", "mask", "value"), "masked_fill"),
        bind=bind_first,
        forward=_masked_fill_forward,
        conserves=False,
    ),
    Op(
        "where",
        _where,
        Memory.NEW,
        of_any_sign,
        Channels.KEPT,
        functions={torch.where: ("condition", "input", "other"), "where": ("input", "condition", "other")},
        conserves=False,
    ),
)
