"""Max pools and dropout: relevance follows the winners, and the units that were kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.linear_map import Parts, expand, max_pool_adjoint, times
from tw_seg.lrp.ops.op import Functions, Op, dims_of, keep_first, no_values, only_input, reduced_axis

if TYPE_CHECKING:
    from tw_seg.lrp.core.backward import Backward
    from tw_seg.lrp.core.tape import Tape

_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_DROPOUT = ("input", "p", "training", "inplace")

MODULES: dict[type[nn.Module], str] = {
    nn.MaxPool1d: "max_pool",
    nn.MaxPool2d: "max_pool",
    nn.MaxPool3d: "max_pool",
    nn.AdaptiveMaxPool1d: "adaptive_max_pool",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool",
    nn.AdaptiveMaxPool3d: "adaptive_max_pool",
    nn.Dropout: "dropout",
    nn.Dropout1d: "dropout1d",
    nn.Dropout2d: "dropout2d",
    nn.Dropout3d: "dropout3d",
}

FUNCTIONS: Functions = {
    F.max_pool1d: ("max_pool", _MAX_POOL),
    F.max_pool2d: ("max_pool", _MAX_POOL),
    F.max_pool3d: ("max_pool", _MAX_POOL),
    torch.max_pool1d: ("max_pool", _MAX_POOL[:6]),
    torch.max_pool2d: ("max_pool", _MAX_POOL[:6]),
    torch.max_pool3d: ("max_pool", _MAX_POOL[:6]),
    F.adaptive_max_pool1d: ("adaptive_max_pool", ("input", "output_size", "return_indices")),
    F.adaptive_max_pool2d: ("adaptive_max_pool", ("input", "output_size", "return_indices")),
    F.adaptive_max_pool3d: ("adaptive_max_pool", ("input", "output_size", "return_indices")),
    F.dropout: ("dropout", _DROPOUT),
    F.dropout1d: ("dropout1d", _DROPOUT),
    F.dropout2d: ("dropout2d", _DROPOUT),
    F.dropout3d: ("dropout3d", _DROPOUT),
    torch.amax: ("amax", ("input", "dim", "keepdim")),
    "amax": ("amax", ("input", "dim", "keepdim")),
    torch.max: ("max", ("input", "dim", "keepdim")),
    "max": ("max", ("input", "dim", "keepdim")),
}


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
    dims = sorted(dims_of(call.options.get("dim"), a.ndim))
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


def _dropout(function: Callable[..., Tensor]) -> Callable[[Tape, Call], Tensor]:
    def forward(tape: Tape, call: Call) -> Tensor:
        value: Tensor = tape.values[call.inputs[0]]
        module = tape.modules.get(call.target) if call.op == "call_module" else None
        training = module.training if module is not None else tape.resolve(call.options.get("training", True))
        if not training:
            return value
        # The same draw as the module's own, kept so that relevance follows the units that were kept.
        noise = function(torch.ones_like(value), tape.number(call, "p", 0.5), True)
        tape.saved[call.name] = noise
        return value * noise

    return forward


def _kept(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    name, noise = call.inputs[0], backward.tape.saved.get(call.name)
    axis = backward.axis(name)
    return {name: c if noise is None else times(c, backward.rows(noise, axis), axis)}


OPS: dict[str, Op] = {
    "max_pool": Op(_to_winners, _max_pool, reads=no_values, fresh=True),
    "adaptive_max_pool": Op(_to_winners, _adaptive_max_pool, reads=no_values, fresh=True),
    "amax": Op(_amax, axis=reduced_axis, reads=only_input),
    "max": Op(_max, axis=reduced_axis, reads=only_input),
    "dropout": Op(_kept, _dropout(F.dropout), reads=no_values),
    "dropout1d": Op(_kept, _dropout(F.dropout1d), reads=no_values),
    "dropout2d": Op(_kept, _dropout(F.dropout2d), reads=no_values),
    "dropout3d": Op(_kept, _dropout(F.dropout3d), reads=no_values),
}
