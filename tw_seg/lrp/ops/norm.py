"""Normalisations by statistics of the sample: LayerNorm, GroupNorm, InstanceNorm, RMSNorm.

The standard deviation is held constant; the mean and the affine map are linear in the input (AttnLRP, Achtibat et
al. 2024, arXiv 2402.05602, section 3.3.3). So relevance is conserved but for the bias.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op
from tw_seg.lrp.core.linear_map import per_channel, times
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.op import keep_batch, name_functions, of_any_sign, only_input

_LAYER = ("input", "normalized_shape", "weight", "bias", "eps")
_RMS = ("input", "normalized_shape", "weight", "eps")
_INSTANCE = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
_TORCH_INSTANCE = ("input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps")
_GROUP = ("input", "num_groups", "weight", "bias", "eps")


def _normalised_dims(backward: Backward, call: Call) -> tuple[int, ...]:
    ndim = backward.tape.values[call.name].ndim
    shape = backward.tape.resolve(call.options["normalized_shape"])
    dims = tuple(range(ndim - (1 if isinstance(shape, int) else len(shape)), ndim))
    keep_batch(backward.tape, call, dims)
    return dims


def _layer_norm(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, dims = call.inputs[0], _normalised_dims(backward, call)
    value, weight = backward.value(name), backward.weight(call)
    var = value.var(dims, unbiased=False, keepdim=True)
    scaled = c if weight is None else c * weight
    scaled = times(scaled, torch.rsqrt(var + backward.tape.number(call, "eps", 1e-5)), backward.axis(name))
    return {name: scaled - scaled.mean(dims, keepdim=True)}


def _rms_norm(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, dims = call.inputs[0], _normalised_dims(backward, call)
    value, weight = backward.value(name), backward.weight(call)
    eps = backward.tape.number(call, "eps", torch.finfo(value.dtype).eps)
    square = value.square().mean(dims, keepdim=True)
    return {name: times(c if weight is None else c * weight, torch.rsqrt(square + eps), backward.axis(name))}


def _group_norm(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name = call.inputs[0]
    keep_batch(backward.tape, call, tuple(range(1, c.ndim)))
    value, weight = backward.value(name), backward.weight(call)
    groups = int(call.options["num_groups"]) if call.kind == "group_norm" else value.shape[1]
    var = value.unflatten(1, (groups, -1)).flatten(2).var(2, unbiased=False)
    scaled = c if weight is None else c * per_channel(weight, c.ndim)
    grouped = scaled.unflatten(1, (groups, -1)).flatten(2)
    grouped = times(grouped, torch.rsqrt(var + backward.tape.number(call, "eps", 1e-5)).unsqueeze(2))
    return {name: (grouped - grouped.mean(2, keepdim=True)).reshape(c.shape)}


def _absorb_bias(backward: Backward, call: Call, c: Tensor) -> Tensor:
    bias = backward.tape.parameter(call, "bias")
    if bias is None:
        return torch.zeros_like(c)
    return c * (per_channel(bias, c.ndim) if call.op.channels is Channels.FIRST else bias)


def _run_instance_norm(tape: Tape, call: Call) -> Tensor:
    if call.fx_op == "call_module":
        running = getattr(tape.modules[call.target], "track_running_stats", False)
    else:
        running = not tape.resolve(call.options.get("use_input_stats", True))
    if running:
        raise UnsupportedOpError(f"{call.place}: InstanceNorm with running statistics has no relevance rule")
    value: Tensor = tape.execute(call)
    return value


_LAYER_NORM = Op(
    "layer_norm",
    _layer_norm,
    Memory.NEW,
    of_any_sign,
    Channels.LAST,
    modules=(nn.LayerNorm,),
    functions=name_functions(_LAYER, F.layer_norm, torch.layer_norm),
    options=("normalized_shape",),
    reads=only_input,
    absorbed=_absorb_bias,
    text="std constant",
    weighted=True,
)

_GROUP_NORM = replace(
    _LAYER_NORM,
    kind="group_norm",
    adjoint=_group_norm,
    channels=Channels.FIRST,
    modules=(nn.GroupNorm,),
    functions=name_functions(_GROUP, F.group_norm, torch.group_norm),
    options=("num_groups",),
)

OPS = (
    _LAYER_NORM,
    replace(
        _LAYER_NORM,
        kind="rms_norm",
        adjoint=_rms_norm,
        modules=(nn.RMSNorm,),
        functions=name_functions(_RMS, F.rms_norm, torch.rms_norm),
        absorbed=None,
    ),
    _GROUP_NORM,
    replace(
        _GROUP_NORM,
        kind="instance_norm",
        modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        functions={F.instance_norm: _INSTANCE, torch.instance_norm: _TORCH_INSTANCE},
        options=(),
        forward=_run_instance_norm,
    ),
)
