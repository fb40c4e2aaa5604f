"""Linear maps: convolutions, linear layers, average pools, sums, BatchNorm, interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core import linear_map as maps
from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.linear_map import LinearMap, per_channel
from tw_seg.lrp.ops.op import Functions, Op, dims_of, keep_batch, keep_first, reduced_axis
from tw_seg.lrp.rules import Epsilon, LinearRule, Rule

if TYPE_CHECKING:
    from tw_seg.lrp.core.backward import Backward
    from tw_seg.lrp.core.tape import Tape

_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_REDUCE = ("input", "dim", "keepdim")
WEIGHTED = ("conv", "conv_transpose", "linear")
"""Kinds with a weight that a BatchNorm is multiplied into."""

_INTERPOLATE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")

MODULES: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.Conv3d: "conv",
    nn.ConvTranspose1d: "conv_transpose",
    nn.ConvTranspose2d: "conv_transpose",
    nn.ConvTranspose3d: "conv_transpose",
    nn.Linear: "linear",
    nn.modules.linear.NonDynamicallyQuantizableLinear: "linear",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm3d: "batch_norm",
    nn.AvgPool1d: "avg_pool",
    nn.AvgPool2d: "avg_pool",
    nn.AvgPool3d: "avg_pool",
    nn.AdaptiveAvgPool1d: "adaptive_avg_pool",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool",
    nn.AdaptiveAvgPool3d: "adaptive_avg_pool",
    nn.Upsample: "interpolate",
    nn.UpsamplingNearest2d: "interpolate",
    nn.UpsamplingBilinear2d: "interpolate",
}

FUNCTIONS: Functions = {
    F.conv1d: ("conv", _CONV),
    F.conv2d: ("conv", _CONV),
    F.conv3d: ("conv", _CONV),
    F.conv_transpose1d: ("conv_transpose", _CONV_TRANSPOSE),
    F.conv_transpose2d: ("conv_transpose", _CONV_TRANSPOSE),
    F.conv_transpose3d: ("conv_transpose", _CONV_TRANSPOSE),
    F.linear: ("linear", ("input", "weight", "bias")),
    F.batch_norm: ("batch_norm", _NORM),
    F.avg_pool1d: ("avg_pool", ("input", *_POOL[:5])),
    F.avg_pool2d: ("avg_pool", ("input", *_POOL)),
    F.avg_pool3d: ("avg_pool", ("input", *_POOL)),
    F.adaptive_avg_pool1d: ("adaptive_avg_pool", ("input", "output_size")),
    F.adaptive_avg_pool2d: ("adaptive_avg_pool", ("input", "output_size")),
    F.adaptive_avg_pool3d: ("adaptive_avg_pool", ("input", "output_size")),
    torch.mean: ("mean", _REDUCE),
    "mean": ("mean", _REDUCE),
    torch.sum: ("sum", _REDUCE),
    "sum": ("sum", _REDUCE),
    F.interpolate: ("interpolate", _INTERPOLATE),
}


def fused_norm(backward: Backward, call: Call) -> str | None:
    """The BatchNorm after a linear call that is multiplied into it, if any."""
    return None if _apart(backward, call) else call.norm


def norm_before(backward: Backward, call: Call) -> str | None:
    """The BatchNorm before a linear call that is multiplied into it, if any; not where its output is read."""
    return None if _apart(backward, call) or call.norm_before in backward.readouts else call.norm_before


def _apart(backward: Backward, call: Call) -> bool:
    # A linear layer on (N, L, F) has its channels last, a BatchNorm1d beside it has them second.
    return call.kind == "linear" and backward.tape.values[call.name].ndim > 2


def source(backward: Backward, call: Call) -> str:
    """The call whose activation a linear call's map starts from: its input, or that of the BatchNorm before it."""
    before = norm_before(backward, call)
    return backward.calls[before].inputs[0] if before else call.inputs[0]


def norm_scale(backward: Backward, call: Call) -> Tensor:
    """Per-channel factor of a BatchNorm call, its statistics held constant along the input."""
    scale: Tensor = backward.tape.saved[call.name][0]
    weight = backward.weight(call)
    return scale if weight is None else scale * weight


def norm_affine(backward: Backward, call: Call) -> tuple[Tensor, Tensor]:
    """Factor and shift per channel of a BatchNorm call."""
    mean: Tensor = backward.tape.saved[call.name][1]
    scale = norm_scale(backward, call)
    bias = backward.tape.parameter(call, "bias")
    return scale, -mean * scale if bias is None else bias - mean * scale


def before_norm(backward: Backward, call: Call, c: Tensor) -> Tensor:
    """The coefficient at a call's own output: a BatchNorm fused into it handed on that of its output."""
    fused = fused_norm(backward, call)
    return c if fused is None else c * per_channel(norm_scale(backward, backward.calls[fused]), c.ndim)


def output(backward: Backward, call: Call) -> Tensor:
    """``z`` of a linear call: its output, or that of the BatchNorm fused into it."""
    return backward.value(fused_norm(backward, call) or call.name)


def input_relevance(backward: Backward, call: Call, c: Tensor) -> Tensor | None:
    """Relevance (K*S, *in) at the images by the input's rule; ``None`` where it does not apply."""
    rule = backward.composite.input
    if rule is None or call.kind not in WEIGHTED or source(backward, call) != backward.tape.graph.input:
        return None
    return rule.relevance(
        c, backward.value(backward.tape.graph.input), output(backward, call), linear_map(backward, call)
    )


def _weighted(backward: Backward, call: Call) -> LinearMap:
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
        call for call in backward.calls.values() if call.kind in WEIGHTED and backward.wanted.intersection(call.inputs)
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


def _avg_pool(backward: Backward, call: Call) -> LinearMap:
    keep_first(call, backward.axis(call.inputs[0]))
    size = tuple(backward.tape.values[call.inputs[0]].shape[2:])
    settings = {k: call.options[k] for k in _POOL if k in call.options}
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
    dims = dims_of(call.options.get("dim"), len(shape))
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


_NEAREST: dict[str, Any] = {
    "nearest": torch.ops.aten.upsample_nearest2d_backward,
    "nearest-exact": torch.ops.aten._upsample_nearest_exact2d_backward,
}


def _interpolate(backward: Backward, call: Call) -> LinearMap:
    keep_first(call, backward.axis(call.inputs[0]))
    o = backward.tape.resolve({k: call.options[k] for k in _INTERPOLATE[1:] if k in call.options})
    size = tuple(backward.tape.values[call.inputs[0]].shape[2:])
    target = list(backward.tape.values[call.name].shape[2:])
    mode = o.get("mode", "nearest")
    factor = None if o.get("recompute_scale_factor") else o.get("scale_factor")
    factors = [None] * len(size) if factor is None else _per_dim_float(factor, len(size))
    settings = {k: o[k] for k in ("align_corners", "antialias") if k in o}
    settings["mode"] = "bilinear" if mode in ("linear", "trilinear") else mode  # the same along one axis

    def adjoint(c: Tensor) -> Tensor:
        if len(size) == 2 and mode in _NEAREST:
            spread: Tensor = _NEAREST[mode](c, target, [*c.shape[:2], *size], *factors)
            return spread
        # Every mode is separable: one matrix for each axis. torch cannot export all of its own backward ops.
        for i, (n, m) in enumerate(zip(size, target, strict=True)):
            matrix = _interpolation(n, m, factors[i], settings, c)
            c = torch.movedim(torch.movedim(c, 2 + i, -1) @ matrix, -1, 2 + i)
        return c

    return maps.avg_pool(lambda x: F.interpolate(x, **o), adjoint)


def _interpolation(n: int, m: int, factor: float | None, settings: dict[str, Any], like: Tensor) -> Tensor:
    """The matrix (m, n) by which one axis is interpolated: what becomes of unit vectors."""
    half = like.dtype in (torch.float16, torch.bfloat16)
    units = torch.eye(n, dtype=torch.float32 if half else like.dtype, device=like.device)[None, None]
    given: dict[str, Any] = {"size": (m, n)} if factor is None else {"scale_factor": (factor, 1.0)}
    return F.interpolate(units, **given, **settings)[0, 0].to(like.dtype)


def _per_dim_float(value: Any, dims: int) -> list[float]:
    return [float(v) for v in value] if isinstance(value, (tuple, list)) else [float(value)] * dims


def linear_map(backward: Backward, call: Call) -> LinearMap:
    """The linear map ``z = W a + b`` of a call."""
    build = OPS[call.kind].linear_map
    assert build is not None
    before = norm_before(backward, call) if call.kind in WEIGHTED else None
    reader = call if before is None else backward.calls[before]
    return replace(build(backward, call), nonnegative=reader.nonnegative)


def _adjoint(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    rule, name = backward.composite.rule(call), source(backward, call)
    if rule == _PLAIN:  # neither activations nor a bias are looked at
        if call.kind not in WEIGHTED:
            layer = linear_map(backward, call)
        elif (factor := _factor_of_coefficient(backward, call, c)) is not None:
            c, layer = (
                c * factor,
                _map(backward, call, _with_norm_before(backward, call, _weight(backward, call)), None),
            )
        else:
            layer = _map(backward, call, _with_norms(backward, call), None)
        return {name: layer.adjoint(c, layer.weight)}
    assert isinstance(rule, LinearRule)
    return {name: rule.coefficient(c, backward.value(name), output(backward, call), linear_map(backward, call))}


def _reads(rule: Rule, call: Call, calls: Mapping[str, Call]) -> tuple[str, ...]:
    if rule == _PLAIN:
        return ()
    before = calls[call.norm_before].inputs if call.norm_before else ()
    return (*call.inputs, *before, call.name, *([call.norm] if call.norm else []))


_PLAIN = Epsilon(0.0)


def batch_statistics(tape: Tape, call: Call) -> bool:
    """Whether a BatchNorm call normalises with the batch's statistics or with the running ones."""
    if call.op != "call_module":
        return bool(tape.resolve(call.options.get("training", False)))
    # torch's own rule: in training, or when none are kept
    kept = any(tape.parameter(call, name) is not None for name in ("running_mean", "running_var"))
    return tape.modules[call.target].training or not kept


def _batch_norm(tape: Tape, call: Call) -> Tensor:
    value: Tensor = tape.values[call.inputs[0]]
    mean, var = tape.parameter(call, "running_mean"), tape.parameter(call, "running_var")
    if batch_statistics(tape, call):
        # As torch does: statistics of half-precision activations are float32.
        half = value.dtype in (torch.float16, torch.bfloat16)
        axes = [0, *range(2, value.ndim)]
        var, mean = torch.var_mean(value.float() if half else value, axes, unbiased=False)
    assert var is not None
    scale = torch.rsqrt(var + tape.number(call, "eps", 1e-5))
    result: Tensor = tape.execute(call)  # it may update the running statistics: theirs are read before
    tape.saved[call.name] = (scale, mean)
    return result


def _norm_map(backward: Backward, call: Call) -> LinearMap:
    keep_first(call, backward.axis(call.inputs[0]))
    return maps.scale(*norm_affine(backward, call), backward.tape.values[call.name].ndim)


def _norm_adjoint(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    reader = backward.calls.get(call.inputs[0])
    if reader is not None and fused_norm(backward, reader) == call.name:
        return {reader.name: c}  # the linear call's map and its output z include the norm
    return _adjoint(backward, call, c)


OPS: dict[str, Op] = {
    "conv": Op(_adjoint, reads=_reads, linear_map=_weighted, fresh=True),
    "conv_transpose": Op(_adjoint, reads=_reads, linear_map=_weighted, fresh=True),
    "linear": Op(_adjoint, reads=_reads, linear_map=_weighted, fresh=True),
    "batch_norm": Op(_norm_adjoint, _batch_norm, reads=_reads, linear_map=_norm_map),
    "avg_pool": Op(_adjoint, reads=_reads, linear_map=_avg_pool),
    "adaptive_avg_pool": Op(_adjoint, reads=_reads, linear_map=_adaptive_avg_pool),
    "mean": Op(_adjoint, axis=reduced_axis, reads=_reads, linear_map=_reduce),
    "sum": Op(_adjoint, axis=reduced_axis, reads=_reads, linear_map=_reduce),
    "interpolate": Op(_adjoint, reads=_reads, linear_map=_interpolate),
}
