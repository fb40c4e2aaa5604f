"""Dropout: relevance follows the units that were kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op
from tw_seg.lrp.core.linear_map import times
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.op import no_values, sign_of_inputs

_DROPOUT = ("input", "p", "training", "inplace")


def _drop(function: Callable[..., Tensor]) -> Callable[[Tape, Call], Tensor]:
    def forward(tape: Tape, call: Call) -> Tensor:
        value: Tensor = tape.values[call.inputs[0]]
        module = tape.modules.get(call.target) if call.fx_op == "call_module" else None
        training = module.training if module is not None else tape.resolve(call.options.get("training", True))
        if not training:
            return value
        # The same draw as the module's own, kept so that relevance follows the units that were kept.
        noise = function(torch.ones_like(value), tape.number(call, "p", 0.5), True)
        tape.saved[call.name] = noise
        return value * noise

    return forward


def _keep(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, noise = call.inputs[0], backward.tape.saved.get(call.name)
    axis = backward.axis(name)
    return {name: c if noise is None else times(c, backward.rows(noise, axis), axis)}


_ELEMENTS = Op(
    "dropout",
    _keep,
    Memory.SHARED,  # in evaluation mode it returns its input
    sign_of_inputs,
    Channels.KEPT,
    modules=(nn.Dropout,),
    functions={F.dropout: _DROPOUT},
    forward=_drop(F.dropout),
    reads=no_values,
)


def _of_channels(kind: str, module: type[nn.Module], function: Callable[..., Tensor]) -> Op:
    return replace(_ELEMENTS, kind=kind, modules=(module,), functions={function: _DROPOUT}, forward=_drop(function))


OPS = (
    _ELEMENTS,
    _of_channels("dropout1d", nn.Dropout1d, F.dropout1d),
    _of_channels("dropout2d", nn.Dropout2d, F.dropout2d),
    _of_channels("dropout3d", nn.Dropout3d, F.dropout3d),
)
