"""Convolutions and linear layers: the linear maps with a weight."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core import linear_map as maps
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import CONVOLUTION, Call, Channels, Memory, Op
from tw_seg.lrp.core.linear_map import LinearMap, per_channel
from tw_seg.lrp.ops.fusion import (
    apply_rule,
    fused_norm,
    norm_affine,
    norm_before,
    norm_scale,
    read_from,
    read_unless_plain,
)
from tw_seg.lrp.ops.op import keep_first, name_functions, name_rule, of_any_sign

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_SETTINGS = ("stride", "padding", "dilation", "groups", "kernel_size")


def _fused_map(backward: Backward, call: Call) -> LinearMap:
    """The linear map of a convolution or linear layer, with the BatchNorms after and before it multiplied in."""
    after, bias = _with_norm_after(backward, call), backward.tape.parameter(call, "bias")
    if fused := fused_norm(backward, call):
        scale, shift = norm_affine(backward, backward.calls[fused])
        bias = shift if bias is None else shift + scale * bias
    if before := norm_before(backward, call):
        # Where padding cuts a window off, less of the shift arrives: what it adds depends on the place.
        value, shift = backward.tape.values[before], norm_affine(backward, backward.calls[before])[1]
        shifted = _map(backward, call, after, bias)
        bias = shifted.forward(per_channel(shift, value.ndim).expand(1, *value.shape[1:]), after, shifted.bias)
    return _map(backward, call, _with_norms(backward, call), bias)


def fuse_weights(backward: Backward, pairs: int) -> dict[str, Tensor]:
    """The weights that a BatchNorm is multiplied into, once for all pieces of a decode of so many pairs.

    Not where all their coefficients are fewer numbers than the weight: there these are multiplied instead.
    """
    calls = [
        call for call in backward.calls.values() if call.op.fuses_norms and backward.wanted.intersection(call.inputs)
    ]
    images = backward.tape.images.shape[0]
    return {
        call.name: _with_norms(backward, call)
        for call in calls
        if (fused_norm(backward, call) or norm_before(backward, call))
        and backward.tape.values[call.name].numel() // images * pairs >= _weight(backward, call).numel()
    }


def _with_norms(backward: Backward, call: Call) -> Tensor:
    known = backward.fused.get(call.name)
    return _with_norm_before(backward, call, _with_norm_after(backward, call)) if known is None else known


def _factor_of_coefficient(backward: Backward, call: Call, c: Tensor) -> Tensor | None:
    """The factor of the BatchNorm after a call, where c is smaller than the weight that would be multiplied."""
    fused = fused_norm(backward, call)
    if fused is None or call.name in backward.fused or torch.compiler.is_compiling():  # sizes may be unknown
        return None
    small = c.numel() < _weight(backward, call).numel()
    return per_channel(norm_scale(backward, backward.calls[fused]), c.ndim) if small else None


def _weight(backward: Backward, call: Call) -> Tensor:
    weight = backward.weight(call)
    assert weight is not None
    return weight


def _with_norm_after(backward: Backward, call: Call) -> Tensor:
    weight, fused = _weight(backward, call), fused_norm(backward, call)
    axis = 1 if call.kind == "conv_transpose" else 0
    return weight if fused is None else _scaled(call, weight, norm_scale(backward, backward.calls[fused]), axis)


def _with_norm_before(backward: Backward, call: Call, weight: Tensor) -> Tensor:
    before = norm_before(backward, call)
    axis = 0 if call.kind == "conv_transpose" else 1
    return weight if before is None else _scaled(call, weight, norm_scale(backward, backward.calls[before]), axis)


def _scaled(call: Call, weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """A weight times one factor for each channel along its axis 0 or 1; channels of axis 1 repeat in each group."""
    rest = [1] * (weight.ndim - 2)
    groups = call.options.get("groups", 1) if axis == 1 else 1
    if axis == 0:
        return weight * scale.reshape(-1, 1, *rest)
    grouped: Tensor = weight.unflatten(0, (groups, -1)) * scale.reshape(groups, 1, -1, *rest)
    return grouped.flatten(0, 1)


def _map(backward: Backward, call: Call, weight: Tensor, bias: Tensor | None) -> LinearMap:
    o, axis = call.options, backward.axis(call.inputs[0])
    if call.kind == "linear":
        return maps.linear(weight, bias, axis=axis)
    keep_first(call, axis)
    size = tuple(backward.tape.values[call.inputs[0]].shape[2:])
    if call.kind == "conv_transpose":
        settings = {k: o[k] for k in _CONV_TRANSPOSE[3:] if k in o}
        return maps.conv_transpose(weight, bias, input_size=size, **settings)
    return maps.conv(weight, bias, input_size=size, **{k: o[k] for k in _CONV[3:] if k in o})


def _adjoint(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    if not backward.rules[call.name].is_plain:
        return apply_rule(backward, call, c)
    # Neither activations nor a bias are looked at.
    if (factor := _factor_of_coefficient(backward, call, c)) is not None:
        c = c * factor
        weight = _with_norm_before(backward, call, _weight(backward, call))
    else:
        weight = _with_norms(backward, call)
    layer = _map(backward, call, weight, None)
    return {read_from(backward, call): layer.adjoint(c, layer.weight)}


_CONVOLUTION = Op(
    "conv",
    _adjoint,
    Memory.NEW,
    of_any_sign,
    Channels.FIRST,
    modules=(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    functions=name_functions(_CONV, F.conv1d, F.conv2d, F.conv3d),
    options=_SETTINGS,
    only={"padding_mode": "zeros"},
    group=CONVOLUTION,
    reads=read_unless_plain,
    linear_map=_fused_map,
    text=name_rule,
    weighted=True,
    fuses_norms=True,
    fresh=True,
)

OPS = (
    _CONVOLUTION,
    replace(
        _CONVOLUTION,
        kind="conv_transpose",
        modules=(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        functions=name_functions(_CONV_TRANSPOSE, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        options=(*_SETTINGS, "output_padding"),
    ),
    replace(
        _CONVOLUTION,
        kind="linear",
        channels=Channels.LAST,
        modules=(nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear),
        functions={F.linear: ("input", "weight", "bias")},
        options=(),
        only={},
        group="dense",
    ),
)
