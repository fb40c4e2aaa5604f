"""BatchNorm: one factor and shift per channel, its statistics held constant."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core import linear_map as maps
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op
from tw_seg.lrp.core.linear_map import LinearMap
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.fusion import apply_rule, fused_norm, norm_affine, read_unless_plain
from tw_seg.lrp.ops.op import keep_first, name_rule, of_any_sign

_TORCH_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def uses_batch_statistics(tape: Tape, call: Call) -> bool:
    """Whether a BatchNorm call normalises with the batch's statistics or with the running ones."""
    if call.fx_op != "call_module":
        return bool(tape.resolve(call.options.get("training", False)))
    # torch's own rule: in training, or when none are kept
    kept = any(tape.parameter(call, name) is not None for name in ("running_mean", "running_var"))
    return tape.modules[call.target].training or not kept


def _keep_to_this_process(tape: Tape, call: Call) -> None:
    """Refuse statistics of a batch that is spread over several processes: those of this one's share differ."""
    synchronises = call.fx_op == "call_module" and isinstance(tape.modules[call.target], nn.SyncBatchNorm)
    distributed = torch.distributed
    if (
        synchronises
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    ):
        raise UnsupportedOpError(
            f"{call.place}: SyncBatchNorm ({call.name!r}) in training normalises by the images of "
            f"{distributed.get_world_size()} processes, which has no relevance rule; put it into evaluation mode"
        )


def _normalise(tape: Tape, call: Call) -> Tensor:
    value: Tensor = tape.values[call.inputs[0]]
    mean, var = tape.parameter(call, "running_mean"), tape.parameter(call, "running_var")
    if uses_batch_statistics(tape, call):
        _keep_to_this_process(tape, call)
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


def _adjoint(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    reader = backward.calls.get(call.inputs[0])
    if reader is not None and fused_norm(backward, reader) == call.name:
        return {reader.name: c}  # the linear call's map and its output z include the norm
    return apply_rule(backward, call, c)


OPS = (
    Op(
        "batch_norm",
        _adjoint,
        Memory.NEW,
        of_any_sign,
        Channels.FIRST,
        modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        functions={F.batch_norm: _NORM, torch.batch_norm: _TORCH_NORM},
        forward=_normalise,
        reads=read_unless_plain,
        linear_map=_norm_map,
        text=name_rule,
        weighted=True,
        fusible=True,
    ),
)
