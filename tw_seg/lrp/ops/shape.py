"""Calls that move values without computing: reshape, permute, repeat, pad, join, fold. Coefficients move back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Adjoint, Call, Channels, Memory, Names, Op, Sign
from tw_seg.lrp.core.linear_map import accumulate, unbroadcast
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.op import (
    aligned_axis,
    bind_listed,
    keep_batch,
    name_functions,
    no_values,
    of_any_sign,
    resolve_dims,
    sign_of_inputs,
    sign_of_tensors,
    spell,
)

_X = ("input",)
_TRANSPOSE = ("input", "dim0", "dim1")
_UNFOLD = ("input", "kernel_size", "dilation", "padding", "stride")
_FOLD = ("input", "output_size", *_UNFOLD[1:])


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
            f"{call.place}: {call.kind} ({call.name!r}) of {tuple(shape)} joins the batch axis {axis} "
            f"with axes before it, to {tuple(tape.values[call.name].shape)}; the images must stay outermost"
        )
    return found


def _squeeze_axis(tape: Tape, call: Call) -> int:
    value, axis = tape.values[call.inputs[0]], tape.axes[call.inputs[0]]
    dim = call.options.get("dim")
    if dim is None:
        return int(axis - sum(n == 1 for n in value.shape[:axis]))
    return int(axis - sum(d < axis and value.shape[d] == 1 for d in resolve_dims(dim, value.ndim)))


def _squeeze(tape: Tape, call: Call) -> Tensor:
    """Never the batch axis, also where there is one image."""
    value: Tensor = tape.values[call.inputs[0]]
    axis = tape.axes[call.inputs[0]]
    dims = [d for d in resolve_dims(call.options.get("dim"), value.ndim) if d != axis]
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
    sources, targets = (resolve_dims(o[key], ndim) for key in ("source", "destination"))
    rest = iter([d for d in order if d not in sources])
    moved = dict(zip(targets, sources, strict=True))
    return [moved[d] if d in moved else next(rest) for d in order]


def _permute(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    order = _order(backward.tape, call)
    return {call.inputs[0]: c.permute([order.index(d) for d in range(len(order))])}


def _moved_axis(tape: Tape, call: Call, axis: int) -> int:
    """Where a permute or transpose puts an axis of its input."""
    return _order(tape, call).index(axis)


def _permute_axis(tape: Tape, call: Call) -> int:
    return _moved_axis(tape, call, tape.axes[call.inputs[0]])


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
    (dim,) = resolve_dims(call.options["dim"], c.ndim)
    repeats = backward.tape.resolve(call.options["repeats"])
    return {call.inputs[0]: c.unflatten(dim, (-1, repeats)).sum(dim + 1)}


def _roll(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    shifts = backward.tape.resolve(call.options["shifts"])
    dims = resolve_dims(call.options.get("dims"), c.ndim)
    keep_batch(backward.tape, call, dims)
    back = [-s for s in shifts] if isinstance(shifts, (tuple, list)) else -shifts
    return {call.inputs[0]: torch.roll(c, back, call.options["dims"])}


def _flip(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    dims = resolve_dims(_dims(call), c.ndim)
    keep_batch(backward.tape, call, dims)
    return {call.inputs[0]: c.flip(dims)}


def _padding(tape: Tape, call: Call) -> tuple[list[int], str, float]:
    if call.fx_op == "call_module":
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
    keep_batch(tape, call, resolve_dims(call.options.get("dim", 0), tape.values[call.name].ndim))
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


def _number(tape: Tape, call: Call, name: str) -> int:
    return int(getattr(tape.modules[call.target], name) if call.fx_op == "call_module" else call.options[name])


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
    (dim,) = resolve_dims(call.options["dimension"], len(target))
    keep_batch(backward.tape, call, (dim,))
    cells = torch.arange(c.shape[dim], device=c.device)[:, None] * step + torch.arange(size, device=c.device)
    spread = c.movedim(-1, dim + 1).flatten(dim, dim + 1)
    return {call.inputs[0]: spread.new_zeros(target).index_add(dim, cells.flatten(), spread)}


def _move(
    kind: str,
    adjoint: Adjoint,
    memory: Memory,
    functions: dict[Any, Names],
    sign: Sign = sign_of_inputs,
    **rest: Any,
) -> Op:
    """An operation whose adjoint looks at shapes only; ``rest`` are more attributes of its `Op`."""
    return Op(kind, adjoint, memory, sign, Channels.KEPT, functions=functions, reads=no_values, **rest)


_PERMUTE = _move(
    "permute",
    _permute,
    Memory.SHARED,
    spell(("input", "dims"), "permute"),
    axis=_permute_axis,
    rearranges=True,
    moved=_moved_axis,
)

_CAT = _move(
    "cat",
    _cat,
    Memory.NEW,
    spell(("input", "dim"), "cat concat concatenate"),
    sign=sign_of_tensors,
    bind=bind_listed,
    axis=_cat_axis,
    absorbed=_cat_absorbed,
)

OPS = (
    _move(
        "reshape",
        _reshape,
        Memory.SHARED,
        spell(_X, "flatten reshape reshape_as view view_as unflatten ravel"),
        modules=(nn.Flatten, nn.Unflatten),
        axis=_reshape_axis,
        rearranges=True,
    ),
    _move(
        "squeeze",
        _reshape,
        Memory.SHARED,
        spell(("input", "dim"), "squeeze"),
        forward=_squeeze,
        axis=_squeeze_axis,
        rearranges=True,
    ),
    _move(
        "unsqueeze",
        _reshape,
        Memory.SHARED,
        spell(("input", "dim"), "unsqueeze"),
        axis=_unsqueeze_axis,
        rearranges=True,
    ),
    _move("identity", _identity, Memory.SAME, {}, modules=(nn.Identity,)),
    _move("contiguous", _identity, Memory.SHARED, spell(_X, "contiguous positive"), rearranges=True),
    _move("clone", _identity, Memory.NEW, spell(_X, "clone"), spreads=True, rearranges=True),
    _move(
        "cast",
        _cast,
        Memory.SHARED,
        name_functions(_X, "to", "float", "double", "half", "bfloat16", "type", "type_as"),
        rearranges=True,
    ),
    _PERMUTE,
    replace(
        _PERMUTE,
        kind="transpose",
        functions=spell(_TRANSPOSE, "transpose swapaxes swapdims t"),
    ),
    replace(
        _PERMUTE,
        kind="movedim",
        functions=spell(("input", "source", "destination"), "movedim moveaxis"),
    ),
    _move(
        "expand",
        _expand,
        Memory.SHARED,
        spell(_X, "expand expand_as broadcast_to"),
        axis=aligned_axis,
        rearranges=True,
    ),
    _move("repeat", _repeat, Memory.NEW, spell(_X, "repeat tile"), axis=aligned_axis, spreads=True),
    _move(
        "repeat_interleave",
        _repeat_interleave,
        Memory.NEW,
        spell(("input", "repeats", "dim"), "repeat_interleave"),
        spreads=True,
    ),
    _move("roll", _roll, Memory.NEW, spell(("input", "shifts", "dims"), "roll")),
    _move("flip", _flip, Memory.NEW, spell(("input", "dims"), "flip")),
    _move(
        "pad",
        _pad,
        Memory.NEW,
        {F.pad: ("input", "pad", "mode", "value")},
        sign=of_any_sign,  # the value that it is filled up with
        modules=(
            nn.ZeroPad1d,
            nn.ZeroPad2d,
            nn.ZeroPad3d,
            nn.ConstantPad1d,
            nn.ConstantPad2d,
            nn.ConstantPad3d,
            nn.ReflectionPad1d,
            nn.ReflectionPad2d,
            nn.ReflectionPad3d,
            nn.ReplicationPad1d,
            nn.ReplicationPad2d,
            nn.ReplicationPad3d,
            nn.CircularPad1d,
            nn.CircularPad2d,
            nn.CircularPad3d,
        ),
        absorbed=_pad_absorbed,
    ),
    _CAT,
    replace(
        _CAT,
        kind="stack",
        adjoint=_stack,
        functions={torch.stack: ("input", "dim")},
        axis=_stack_axis,
        absorbed=None,
        conserves=False,
    ),
    _move(
        "pixel_shuffle",
        _pixel_shuffle,
        Memory.NEW,
        {F.pixel_shuffle: ("input", "upscale_factor")},
        modules=(nn.PixelShuffle,),
    ),
    _move(
        "pixel_unshuffle",
        _pixel_unshuffle,
        Memory.NEW,
        {F.pixel_unshuffle: ("input", "downscale_factor")},
        modules=(nn.PixelUnshuffle,),
    ),
    _move(
        "channel_shuffle",
        _channel_shuffle,
        Memory.NEW,
        {F.channel_shuffle: ("input", "groups")},
        modules=(nn.ChannelShuffle,),
    ),
    _move("unfold", _unfold, Memory.NEW, {F.unfold: _UNFOLD}, modules=(nn.Unfold,), options=_UNFOLD[1:]),
    _move("fold", _fold, Memory.NEW, {F.fold: _FOLD}, modules=(nn.Fold,), options=_FOLD[1:]),
    _move("windows", _windows, Memory.SHARED, {"unfold": ("input", "dimension", "size", "step")}),
)
