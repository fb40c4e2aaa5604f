"""Interpolation: a linear map without a weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core import linear_map as maps
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op
from tw_seg.lrp.core.linear_map import LinearMap
from tw_seg.lrp.ops.fusion import apply_rule, read_unless_plain
from tw_seg.lrp.ops.op import keep_first, name_rule, of_any_sign

_INTERPOLATE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")

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


OPS = (
    Op(
        "interpolate",
        apply_rule,
        Memory.NEW,
        of_any_sign,  # bicubic weights are of both signs
        Channels.FIRST,
        modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
        functions={F.interpolate: _INTERPOLATE},
        options=_INTERPOLATE[1:6],
        reads=read_unless_plain,
        linear_map=_interpolate,
        text=name_rule,
        spreads=True,
    ),
)
