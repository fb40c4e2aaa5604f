"""Calls that move values without computing: reshape, permute, slice, join, pad. Coefficients move back."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.linear_map import Parts, accumulate, unbroadcast
from tw_seg.lrp.ops.op import Functions, Op, aligned_axis, dims_of, keep_batch, no_values, receives

if TYPE_CHECKING:
    from tw_seg.lrp.core.backward import Backward
    from tw_seg.lrp.core.tape import Tape

_X = ("input",)
_UNFOLD = ("input", "kernel_size", "dilation", "padding", "stride")
_FOLD = ("input", "output_size", *_UNFOLD[1:])

MODULES: dict[type[nn.Module], str] = {
    nn.Flatten: "reshape",
    nn.Unflatten: "reshape",
    nn.Identity: "identity",
    nn.PixelShuffle: "pixel_shuffle",
    nn.PixelUnshuffle: "pixel_unshuffle",
    nn.ChannelShuffle: "channel_shuffle",
    nn.ZeroPad1d: "pad",
    nn.ZeroPad2d: "pad",
    nn.ZeroPad3d: "pad",
    nn.ConstantPad1d: "pad",
    nn.ConstantPad2d: "pad",
    nn.ConstantPad3d: "pad",
    nn.ReflectionPad1d: "pad",
    nn.ReflectionPad2d: "pad",
    nn.ReflectionPad3d: "pad",
    nn.ReplicationPad1d: "pad",
    nn.ReplicationPad2d: "pad",
    nn.ReplicationPad3d: "pad",
    nn.CircularPad1d: "pad",
    nn.CircularPad2d: "pad",
    nn.CircularPad3d: "pad",
    nn.Unfold: "unfold",
    nn.Fold: "fold",
}

FUNCTIONS: Functions = {
    torch.flatten: ("reshape", _X),
    torch.reshape: ("reshape", _X),
    torch.unflatten: ("reshape", _X),
    "flatten": ("reshape", _X),
    "reshape": ("reshape", _X),
    "reshape_as": ("reshape", _X),
    "view": ("reshape", _X),
    "view_as": ("reshape", _X),
    "unflatten": ("reshape", _X),
    torch.squeeze: ("squeeze", ("input", "dim")),
    "squeeze": ("squeeze", ("input", "dim")),
    torch.unsqueeze: ("unsqueeze", ("input", "dim")),
    "unsqueeze": ("unsqueeze", ("input", "dim")),
    "contiguous": ("identity", _X),
    "clone": ("identity", _X),
    torch.clone: ("identity", _X),
    "to": ("cast", _X),
    "float": ("cast", _X),
    "double": ("cast", _X),
    "half": ("cast", _X),
    "bfloat16": ("cast", _X),
    "type": ("cast", _X),
    "type_as": ("cast", _X),
    "permute": ("permute", _X),
    torch.permute: ("permute", ("input", "dims")),
    "transpose": ("transpose", ("input", "dim0", "dim1")),
    torch.transpose: ("transpose", ("input", "dim0", "dim1")),
    "swapaxes": ("transpose", ("input", "dim0", "dim1")),
    "swapdims": ("transpose", ("input", "dim0", "dim1")),
    torch.swapaxes: ("transpose", ("input", "dim0", "dim1")),
    "t": ("transpose", ("input", "dim0", "dim1")),
    "movedim": ("movedim", ("input", "source", "destination")),
    torch.movedim: ("movedim", ("input", "source", "destination")),
    "expand": ("expand", _X),
    "expand_as": ("expand", _X),
    "repeat": ("repeat", _X),
    "repeat_interleave": ("repeat_interleave", ("input", "repeats", "dim")),
    torch.repeat_interleave: ("repeat_interleave", ("input", "repeats", "dim")),
    "roll": ("roll", ("input", "shifts", "dims")),
    torch.roll: ("roll", ("input", "shifts", "dims")),
    "flip": ("flip", ("input", "dims")),
    torch.flip: ("flip", ("input", "dims")),
    F.pad: ("pad", ("input", "pad", "mode", "value")),
    torch.cat: ("cat", ("input", "dim")),
    torch.concat: ("cat", ("input", "dim")),
    torch.concatenate: ("cat", ("input", "dim")),
    torch.stack: ("stack", ("input", "dim")),
    torch.chunk: ("split", ("input", "chunks", "dim")),
    "chunk": ("split", ("input", "chunks", "dim")),
    torch.split: ("split", ("input", "sizes", "dim")),
    "split": ("split", ("input", "sizes", "dim")),
    "split_with_sizes": ("split", ("input", "sizes", "dim")),
    torch.tensor_split: ("split", ("input", "sections", "dim")),
    "tensor_split": ("split", ("input", "sections", "dim")),
    torch.unbind: ("unbind", ("input", "dim")),
    "unbind": ("unbind", ("input", "dim")),
    operator.getitem: ("getitem", ("input", "index")),
    operator.setitem: ("setitem", ("input", "index", "other")),
    "select": ("select", ("input", "dim", "index")),
    torch.select: ("select", ("input", "dim", "index")),
    "narrow": ("narrow", ("input", "dim", "start", "length")),
    torch.narrow: ("narrow", ("input", "dim", "start", "length")),
    torch.index_select: ("index_select", ("input", "dim", "index")),
    "index_select": ("index_select", ("input", "dim", "index")),
    F.pixel_shuffle: ("pixel_shuffle", ("input", "upscale_factor")),
    F.pixel_unshuffle: ("pixel_unshuffle", ("input", "downscale_factor")),
    F.channel_shuffle: ("channel_shuffle", ("input", "groups")),
    F.unfold: ("unfold", _UNFOLD),
    F.fold: ("fold", _FOLD),
    "unfold": ("windows", ("input", "dimension", "size", "step")),
    "masked_fill": ("masked_fill", ("input", "mask", "value")),
    "masked_fill_": ("masked_fill", ("input", "mask", "value")),
    torch.masked_fill: ("masked_fill", ("input", "mask", "value")),
    torch.where: ("where", ("condition", "input", "other")),
    "where": ("where", ("input", "condition", "other")),
}

TUPLES = ("split", "unbind", "max")
"""Kinds whose value is a tuple of tensors: relevance comes back in parts."""


def _reshape(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: c.reshape(backward.shape(call, c))}


def _reshape_axis(tape: Tape, call: Call) -> int:
    """The axis of the output before which as many elements lie as before the input's batch axis."""
    name = call.inputs[0]
    shape, axis = tape.values[name].shape, tape.axes[name]
    if axis == 0:
        return 0
    before = 1
    for n in shape[:axis]:
        before = before * n
    size = 1
    found = None
    for position, n in enumerate(tape.values[call.name].shape):
        if size == before:
            found = position
            if n != 1:
                break
        size = size * n
    if found is None:
        raise UnsupportedOpError(
            f"{call.path or '(root)'}: {call.kind} ({call.name!r}) of {tuple(shape)} joins the batch axis {axis} "
            f"with axes before it, to {tuple(tape.values[call.name].shape)}; the images must stay outermost"
        )
    return found


def _squeeze_axis(tape: Tape, call: Call) -> int:
    value, axis = tape.values[call.inputs[0]], tape.axes[call.inputs[0]]
    dim = call.options.get("dim")
    if dim is None:
        return int(axis - sum(n == 1 for n in value.shape[:axis]))
    return int(axis - sum(d < axis and value.shape[d] == 1 for d in dims_of(dim, value.ndim)))


def _squeeze(tape: Tape, call: Call) -> Tensor:
    """Never the batch axis, also where there is one image."""
    value: Tensor = tape.values[call.inputs[0]]
    axis = tape.axes[call.inputs[0]]
    dims = [d for d in dims_of(call.options.get("dim"), value.ndim) if d != axis]
    return value.squeeze(dims) if dims else value


def _unsqueeze_axis(tape: Tape, call: Call) -> int:
    value, axis = tape.values[call.inputs[0]], tape.axes[call.inputs[0]]
    return int(axis + (call.options["dim"] % (value.ndim + 1) <= axis))


def _identity(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: c}


def _cast(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: c.to(backward.tape.values[call.inputs[0]].dtype)}


def _dims(call: Call) -> Any:
    """The axes of a permute or flip, which a method takes one by one or as a tuple."""
    rest = call.args[1:]
    if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
        return rest[0]
    return rest or call.options["dims"]


def _order(tape: Tape, call: Call) -> list[int]:
    """Axis of the input for each axis of the output."""
    o, ndim = call.options, tape.values[call.inputs[0]].ndim
    order = list(range(ndim))
    if call.kind == "permute":
        return [d % ndim for d in _dims(call)]
    if call.kind == "transpose":
        first, second = o.get("dim0", 0) % ndim, o.get("dim1", 1) % ndim
        order[first], order[second] = order[second], order[first]
        return order
    sources, targets = (dims_of(o[key], ndim) for key in ("source", "destination"))
    rest = iter([d for d in order if d not in sources])
    moved = dict(zip(targets, sources, strict=True))
    return [moved[d] if d in moved else next(rest) for d in order]


def _permute(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    order = _order(backward.tape, call)
    return {call.inputs[0]: c.permute([order.index(d) for d in range(len(order))])}


def moved_axis(tape: Tape, call: Call, axis: int) -> int:
    """Where a permute or transpose puts an axis of its input."""
    return _order(tape, call).index(axis)


def _permute_axis(tape: Tape, call: Call) -> int:
    return moved_axis(tape, call, tape.axes[call.inputs[0]])


def _expand(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name = call.inputs[0]
    return {name: unbroadcast(c, backward.tape.values[name].shape, backward.axis(name))}


def _repeat(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, target = call.inputs[0], backward.shape(call, c)
    extra = c.ndim - len(target)
    if extra:
        c = c.sum(dim=tuple(range(extra)))
    for dim, n in enumerate(target):
        if c.shape[dim] != n:
            if dim == backward.axis(name):
                keep_batch(backward.tape, call, (dim,))
            c = c.unflatten(dim, (-1, n)).sum(dim)
    return {name: c}


def _repeat_interleave(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    (dim,) = dims_of(call.options["dim"], c.ndim)
    repeats = backward.tape.resolve(call.options["repeats"])
    return {call.inputs[0]: c.unflatten(dim, (-1, repeats)).sum(dim + 1)}


def _roll(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    shifts = backward.tape.resolve(call.options["shifts"])
    dims = dims_of(call.options.get("dims"), c.ndim)
    keep_batch(backward.tape, call, dims)
    back = [-s for s in shifts] if isinstance(shifts, (tuple, list)) else -shifts
    return {call.inputs[0]: torch.roll(c, back, call.options["dims"])}


def _flip(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    dims = dims_of(_dims(call), c.ndim)
    keep_batch(backward.tape, call, dims)
    return {call.inputs[0]: c.flip(dims)}


def _padding(tape: Tape, call: Call) -> tuple[list[int], str, float]:
    if call.op == "call_module":
        module: Any = tape.modules[call.target]
        name = type(module).__name__
        mode = next((mode for start, mode in _PAD_MODES.items() if name.startswith(start)), "constant")
        return list(module.padding), mode, getattr(module, "value", 0.0)
    o = tape.resolve({k: call.options.get(k) for k in ("pad", "mode", "value")})
    return list(o["pad"]), o["mode"] or "constant", o["value"] or 0.0


def _pad(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name = call.inputs[0]
    pad, mode, _ = _padding(backward.tape, call)
    axis = backward.axis(name)
    place = 2 * (c.ndim - 1 - axis)
    if any(pad[place : place + 2]):
        keep_batch(backward.tape, call, (axis,))
    if mode == "constant":
        return {name: F.pad(c, [-n for n in pad])}
    shape = backward.shape(call, c)
    if mode == "circular":
        for dim in range(c.ndim - len(pad) // 2, c.ndim):
            places = torch.arange(c.shape[dim], device=c.device) - pad[2 * (c.ndim - 1 - dim)]
            reduced = [*c.shape[:dim], shape[dim], *c.shape[dim + 1 :]]
            c = c.new_zeros(reduced).index_add(dim, places % shape[dim], c)
        return {name: c}
    return {name: _PADS[mode, len(pad) // 2](c, c.new_empty(1).expand(shape), pad)}


_PAD_MODES = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
_PADS: dict[tuple[str, int], Any] = {
    ("reflect", 1): torch.ops.aten.reflection_pad1d_backward,
    ("reflect", 2): torch.ops.aten.reflection_pad2d_backward,
    ("reflect", 3): torch.ops.aten.reflection_pad3d_backward,
    ("replicate", 1): torch.ops.aten.replication_pad1d_backward,
    ("replicate", 2): torch.ops.aten.replication_pad2d_backward,
    ("replicate", 3): torch.ops.aten.replication_pad3d_backward,
}


def _pad_absorbed(backward: Backward, call: Call, c: Tensor) -> Tensor:
    pad, mode, value = _padding(backward.tape, call)
    if mode != "constant" or not value:
        return torch.zeros_like(c)
    inside = F.pad(F.pad(torch.ones_like(c), [-n for n in pad]), pad) > 0
    return (c * value).masked_fill(inside | (c == 0), 0.0)  # minus infinity, before a max pool, wins nothing


def _joined(call: Call) -> Sequence[Any]:
    return call.options["input"]  # type: ignore[no-any-return]


def _cat(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    dim = call.options.get("dim", 0) % c.ndim
    start = 0
    for ref in _joined(call):
        length = backward.tape.values[ref.name].shape[dim]
        if ref.name in call.inputs:
            accumulate(result, ref.name, c.narrow(dim, start, length))
        start = start + length
    return result


def _cat_axis(tape: Tape, call: Call) -> int:
    keep_batch(tape, call, dims_of(call.options.get("dim", 0), tape.values[call.name].ndim))
    return tape.axes[call.inputs[0]]


def _cat_absorbed(backward: Backward, call: Call, c: Tensor) -> Tensor:
    dim = call.options.get("dim", 0) % c.ndim
    shape = list(backward.tape.values[call.name].shape)
    constants = []
    for ref in _joined(call):
        value = backward.tape.values[ref.name]
        constants.append(torch.zeros_like(value) if ref.name in call.inputs else value)
        shape[dim] = value.shape[dim]
        constants[-1] = constants[-1].expand(shape)
    return backward.multiply(c, torch.cat(constants, dim), call)


def _stack(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    dim = call.options.get("dim", 0) % c.ndim
    for position, ref in enumerate(_joined(call)):
        if ref.name in call.inputs:
            accumulate(result, ref.name, c.select(dim, position))
    return result


def _stack_axis(tape: Tape, call: Call) -> int:
    dim = call.options.get("dim", 0) % tape.values[call.name].ndim
    axis = tape.axes[call.inputs[0]]
    return int(axis + (dim <= axis))


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
    if receives(call, whole):
        _place(tape, call)  # refuses an index into the batch
        return tape.axes[call.inputs[0]]
    index = call.options["index"]
    first = index[0] if isinstance(index, tuple) else index
    if tape.axes[call.inputs[0]] != 0 or not (first is ... or first == slice(None)):
        raise UnsupportedOpError(
            f"{call.path or '(root)'}: setitem ({call.name!r}) writes activations into a tensor whose batch axis is "
            "not the first; write them with cat or stack"
        )
    return 0


def _setitem(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    index = backward.tape.resolve(call.options["index"])
    result: dict[str, Tensor] = {}
    whole, part = call.options["input"], call.options["other"]
    if receives(call, whole):
        kept = torch.ones_like(backward.tape.values[call.name], dtype=torch.bool)
        kept[index] = False
        accumulate(result, whole.name, backward.multiply(c, kept, call))
    if receives(call, part):
        shape = backward.tape.values[part.name].shape
        accumulate(result, part.name, unbroadcast(c[index], shape, backward.axis(part.name)))
    return result


def _index_select(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    dim = dims_of(call.options["dim"], c.ndim)
    keep_batch(backward.tape, call, dim)
    index = backward.tape.resolve(call.options["index"])
    return {call.inputs[0]: c.new_zeros(backward.shape(call, c)).index_add(dim[0], index, c)}


def _number(tape: Tape, call: Call, name: str) -> int:
    return int(getattr(tape.modules[call.target], name) if call.op == "call_module" else call.options[name])


def _pixel_shuffle(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: F.pixel_unshuffle(c, _number(backward.tape, call, "upscale_factor"))}


def _pixel_unshuffle(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: F.pixel_shuffle(c, _number(backward.tape, call, "downscale_factor"))}


def _channel_shuffle(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    groups = _number(backward.tape, call, "groups")
    return {call.inputs[0]: c.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)}


def _fold_settings(call: Call) -> dict[str, Any]:
    return {k: call.options[k] for k in _UNFOLD[1:] if k in call.options}


def _unfold(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    size = tuple(backward.tape.values[call.inputs[0]].shape[2:])
    return {call.inputs[0]: F.fold(c, size, **_fold_settings(call))}


def _fold(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: F.unfold(c, **_fold_settings(call))}


def _windows(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    """``Tensor.unfold``: windows along one axis, which may overlap; their cells become the last axis."""
    size, step = (backward.tape.resolve(call.options[n]) for n in ("size", "step"))
    target = backward.shape(call, c)
    (dim,) = dims_of(call.options["dimension"], len(target))
    keep_batch(backward.tape, call, (dim,))
    cells = torch.arange(c.shape[dim], device=c.device)[:, None] * step + torch.arange(size, device=c.device)
    spread = c.movedim(-1, dim + 1).flatten(dim, dim + 1)
    return {call.inputs[0]: spread.new_zeros(target).index_add(dim, cells.flatten(), spread)}


def _masked_fill(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    return {call.inputs[0]: backward.multiply(c, ~backward.tape.resolve(call.options["mask"]), call)}


def _masked_fill_forward(tape: Tape, call: Call) -> Tensor:
    return torch.masked_fill(*(tape.resolve(call.options[n]) for n in ("input", "mask", "value")))


def _where(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    condition = backward.tape.resolve(call.options["condition"])
    result: dict[str, Tensor] = {}
    for operand, mask in (("input", condition), ("other", ~condition)):
        value = call.options[operand]
        if receives(call, value):
            part = unbroadcast(
                backward.multiply(c, mask, call), backward.tape.values[value.name].shape, backward.axis(value.name)
            )
            accumulate(result, value.name, part)
    return result


OPS: dict[str, Op] = {
    "reshape": Op(_reshape, axis=_reshape_axis, reads=no_values),
    "squeeze": Op(_reshape, _squeeze, _squeeze_axis, reads=no_values),
    "unsqueeze": Op(_reshape, axis=_unsqueeze_axis, reads=no_values),
    "identity": Op(_identity, reads=no_values),
    "cast": Op(_cast, reads=no_values),
    "permute": Op(_permute, axis=_permute_axis, reads=no_values),
    "transpose": Op(_permute, axis=_permute_axis, reads=no_values),
    "movedim": Op(_permute, axis=_permute_axis, reads=no_values),
    "expand": Op(_expand, axis=aligned_axis, reads=no_values),
    "repeat": Op(_repeat, axis=aligned_axis, reads=no_values),
    "repeat_interleave": Op(_repeat_interleave, reads=no_values),
    "roll": Op(_roll, reads=no_values),
    "flip": Op(_flip, reads=no_values),
    "pad": Op(_pad, absorbed=_pad_absorbed, reads=no_values),
    "cat": Op(_cat, axis=_cat_axis, absorbed=_cat_absorbed, reads=no_values),
    "stack": Op(_stack, axis=_stack_axis, conserves=False, reads=no_values),
    "split": Op(_split, axis=_split_axis, reads=no_values),
    "unbind": Op(_split, axis=_split_axis, reads=no_values),
    "part": Op(_part, reads=no_values),
    "getitem": Op(_getitem, axis=_getitem_axis, reads=no_values),
    "setitem": Op(_setitem, _setitem_forward, _setitem_axis, conserves=False),
    "select": Op(_getitem, axis=_getitem_axis, reads=no_values),
    "narrow": Op(_getitem, axis=_getitem_axis, reads=no_values),
    "index_select": Op(_index_select, reads=no_values),
    "pixel_shuffle": Op(_pixel_shuffle, reads=no_values),
    "pixel_unshuffle": Op(_pixel_unshuffle, reads=no_values),
    "channel_shuffle": Op(_channel_shuffle, reads=no_values),
    "unfold": Op(_unfold, reads=no_values),
    "fold": Op(_fold, reads=no_values),
    "windows": Op(_windows, reads=no_values),
    "masked_fill": Op(_masked_fill, _masked_fill_forward, conserves=False),
    "where": Op(_where, conserves=False),
}
