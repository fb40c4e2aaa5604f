"""From the coefficient at a call's output to the coefficients at its inputs: one function per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tw_seg.lrp import adjoints
from tw_seg.lrp.adjoints import LinearMap
from tw_seg.lrp.composite import Composite
from tw_seg.lrp.graph import Call
from tw_seg.lrp.tape import Tape


@dataclass(frozen=True)
class Pass:
    """What one backward pass works with.

    Attributes:
        tape: The recorded forward run, of N images.
        composite: Which rule for which call.
        samples: Rows of the images that are decoded, int64 (S,); ``None`` for all.
        weights: The decoder's own weights by dotted name (untied); a weight that is not there is the
            classifier's.
        wanted: Calls whose coefficient is needed.
    """

    tape: Tape
    composite: Composite
    samples: Tensor | None
    weights: Mapping[str, Tensor]
    wanted: frozenset[str]

    def rows(self, value: Tensor) -> Tensor:
        """The decoded rows of a recorded value: (N, ...) -> (S, ...)."""
        return value if self.samples is None else value.index_select(0, self.samples)

    def value(self, name: str) -> Tensor:
        """The activation of a call for the decoded samples, (S, ...)."""
        return self.rows(self.tape.values[name])

    def weight(self, call: Call) -> Tensor | None:
        """The weight that the decoder uses for a call."""
        own = self.weights.get(call.weight) if call.weight else None
        return self.tape.parameter(call, "weight") if own is None else own

    def norm_scale(self, call: Call) -> Tensor:
        """Per-channel factor of a BatchNorm call, its statistics held constant along the input."""
        scale = self.tape.saved[call.name]
        weight = self.weight(call)
        return scale if weight is None else scale * weight


def fused_norm(run: Pass, call: Call) -> str | None:
    """The BatchNorm that is multiplied into a linear call, if any."""
    # A linear layer on (N, L, F) has its channels last, a BatchNorm1d after it has them second.
    apart = call.kind == "linear" and run.tape.values[call.name].ndim > 2
    return None if apart else call.norm


def linear_map(run: Pass, call: Call, calls: Mapping[str, Call]) -> LinearMap:
    """The linear map of a conv, linear or average pool call, with its BatchNorm multiplied in."""
    a, o = run.tape.values[call.inputs[0]], call.options
    size = tuple(a.shape[2:])
    if call.kind == "avg_pool2d":
        settings = {k: o[k] for k in _AVG_POOL if k in o}
        return adjoints.avg_pool(
            lambda x: torch.nn.functional.avg_pool2d(x, **settings),
            lambda c: adjoints.avg_pool2d_adjoint(c, input_size=size, **settings),
        )
    if call.kind == "adaptive_avg_pool2d":
        return adjoints.avg_pool(
            lambda x: torch.nn.functional.adaptive_avg_pool2d(x, o["output_size"]),
            lambda c: adjoints.adaptive_avg_pool2d_adjoint(c, size),
        )
    if call.kind == "mean":
        dims = o["dim"] if isinstance(o["dim"], (tuple, list)) else [o["dim"]]
        keepdim = o.get("keepdim", False)
        return adjoints.avg_pool(
            lambda x: x.mean(dims, keepdim=keepdim),
            lambda c: adjoints.mean_adjoint(c, tuple(a.shape[1:]), dims, keepdim),
        )
    weight, bias = run.weight(call), run.tape.parameter(call, "bias")
    assert weight is not None
    if fused := fused_norm(run, call):
        norm = calls[fused]
        scale = run.norm_scale(norm)
        weight = weight * scale.reshape(-1, *([1] * (weight.ndim - 1)))
        bias = None  # no rule here reads the bias of a fused pair: it is in z
    if call.kind == "linear":
        return adjoints.linear(weight, bias)
    settings = {k: o[k] for k in ("stride", "padding", "dilation", "groups") if k in o}
    return adjoints.conv(weight, bias, input_size=size, **settings)


def before_norm(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> Tensor:
    """The coefficient at a call's own output: a BatchNorm fused into it handed on that of its output."""
    fused = fused_norm(run, call)
    return c if fused is None else c * run.norm_scale(calls[fused]).reshape(-1, *([1] * (c.ndim - 3)))


def input_relevance(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> Tensor | None:
    """Relevance (S, K, *in) at the images by the input's rule; ``None`` where it does not apply."""
    rule = run.composite.input
    if rule is None or call.inputs != (run.tape.graph.input,) or call.kind not in ("conv", "linear"):
        return None
    z = run.value(fused_norm(run, call) or call.name)
    return rule.relevance(c, run.value(call.inputs[0]), z, linear_map(run, call, calls))


def accumulate(parts: dict[str, Tensor], name: str, part: Tensor) -> None:
    """Add one reader's part to what a value has received so far."""
    parts[name] = parts[name] + part if name in parts else part


def step(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    """Coefficients (S, K, ...) that one call hands to its wanted inputs.

    A BatchNorm fused into the linear call before it hands its coefficient on unchanged: the linear call's map
    and its output ``z`` include it.
    """
    return ADJOINT[call.kind](run, call, c, calls)


Adjoint = Callable[[Pass, Call, Tensor, Mapping[str, Call]], dict[str, Tensor]]

_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def _linear(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    rule = run.composite.rule(call)
    layer = linear_map(run, call, calls)
    name = call.inputs[0]
    return {name: rule.coefficient(c, run.value(name), run.value(fused_norm(run, call) or call.name), layer)}


def _batch_norm(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    source = call.inputs[0]
    if source in calls and fused_norm(run, calls[source]) == call.name:
        return {source: c}
    scale = run.norm_scale(call)
    diagonal = scale.reshape(-1, *([1] * (c.ndim - 3)))
    layer = LinearMap(None, None, lambda a, w, b: a * diagonal, lambda c, w: c * diagonal)
    return {source: run.composite.rule(call).coefficient(c, run.value(source), run.value(call.name), layer)}


def _relu(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    gate = run.value(call.name) > 0
    return {call.inputs[0]: c * gate.unsqueeze(1)}


def _relu6(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    u = run.value(call.inputs[0])
    ratio = torch.where(u > 6, 6 / u.clamp(min=6), (u > 0).to(u.dtype))
    return {call.inputs[0]: c * ratio.unsqueeze(1)}


def _leaky_relu(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    positive = run.value(call.inputs[0]) > 0
    return {call.inputs[0]: torch.where(positive.unsqueeze(1), c, c * call.options.get("negative_slope", 0.01))}


def _max_pool(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    name = call.inputs[0]
    winners = run.rows(run.tape.saved[call.name])
    return {name: adjoints.max_pool_adjoint(c, winners, run.tape.values[name].shape[2:])}


def _dropout(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    noise = run.tape.saved.get(call.name)
    return {call.inputs[0]: c if noise is None else c * run.rows(noise).unsqueeze(1)}


def _reshape(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    return {call.inputs[0]: c.reshape(*c.shape[:2], *run.tape.values[call.inputs[0]].shape[1:])}


def _identity(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    return {call.inputs[0]: c}


def _add(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for position, name in enumerate(call.inputs):
        part = adjoints.unbroadcast(c, run.tape.values[name].shape[1:])
        if position == len(call.inputs) - 1 and getattr(call.options.get("other"), "name", None) == name:
            part = part * call.options.get("alpha", 1)
        accumulate(result, name, part)
    return result


def _cat(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    rank = c.ndim - 1
    dim = call.options.get("dim", 0) % rank
    start = 0
    for ref in call.options["input"]:
        length = run.tape.values[ref.name].shape[dim]
        if ref.name in call.inputs:
            part = c.narrow(dim + 1, start, length)
            accumulate(result, ref.name, part)
        start = start + length
    return result


ADJOINT: dict[str, Adjoint] = {
    "conv": _linear,
    "linear": _linear,
    "avg_pool2d": _linear,
    "adaptive_avg_pool2d": _linear,
    "mean": _linear,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "max_pool2d": _max_pool,
    "adaptive_max_pool2d": _max_pool,
    "dropout": _dropout,
    "dropout2d": _dropout,
    "reshape": _reshape,
    "identity": _identity,
    "add": _add,
    "cat": _cat,
}
"""Kind of call -> how relevance passes it."""
