"""Where the rules of linear maps act, and how a BatchNorm beside a linear call becomes part of its map.

A BatchNorm after a convolution or linear layer, or before it, is multiplied into its weight: rules then see one map
``z = W a + b``. The products are tensors of the pass; the model is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Names
from tw_seg.lrp.core.linear_map import LinearMap, per_channel
from tw_seg.lrp.core.rule import LinearRule, Rule


def fused_norm(backward: Backward, call: Call) -> str | None:
    """The BatchNorm after a linear call that is multiplied into it, if any."""
    return None if _has_other_channels(backward, call) else call.norm


def norm_before(backward: Backward, call: Call) -> str | None:
    """The BatchNorm before a linear call that is multiplied into it, if any; not where its output is read."""
    apart = _has_other_channels(backward, call) or call.norm_before in backward.readouts
    return None if apart else call.norm_before


def _has_other_channels(backward: Backward, call: Call) -> bool:
    # A linear layer on (N, L, F) has its channels last, a BatchNorm1d beside it has them second.
    return call.op.channels is Channels.LAST and backward.tape.values[call.name].ndim > 2


def read_from(backward: Backward, call: Call) -> str:
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


def pass_fused_norm(backward: Backward, call: Call, c: Tensor) -> Tensor:
    """The coefficient at a call's own output: a BatchNorm fused into it handed on that of its output."""
    fused = fused_norm(backward, call)
    return c if fused is None else c * per_channel(norm_scale(backward, backward.calls[fused]), c.ndim)


def read_output(backward: Backward, call: Call) -> Tensor:
    """``z`` of a linear call: its output, or that of the BatchNorm fused into it."""
    return backward.value(fused_norm(backward, call) or call.name)


def linear_map(backward: Backward, call: Call) -> LinearMap:
    """The linear map ``z = W a + b`` of a call, with the BatchNorms that are fused into it."""
    build = call.op.linear_map
    assert build is not None
    before = norm_before(backward, call)
    reader = call if before is None else backward.calls[before]
    return replace(build(backward, call), nonnegative=reader.nonnegative)


def apply_rule(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    """The adjoint of a linear map by its call's rule."""
    rule, name = backward.rules[call.name], read_from(backward, call)
    layer = linear_map(backward, call)
    if rule.is_plain:
        return {name: layer.adjoint(c, layer.weight)}
    assert isinstance(rule, LinearRule)
    return {name: rule.coefficient(c, backward.value(name), read_output(backward, call), layer)}


def read_unless_plain(rule: Rule, call: Call, calls: Mapping[str, Call]) -> Names:
    """``reads`` of a linear map: a plain rule looks neither at activations nor at a bias."""
    if rule.is_plain:
        return ()
    before = calls[call.norm_before].inputs if call.norm_before else ()
    return (*call.inputs, *before, call.name, *([call.norm] if call.norm else []))


def input_relevance(backward: Backward, call: Call, c: Tensor) -> Tensor | None:
    """Relevance (K*S, *in) at the images by the input's rule; ``None`` where it does not apply."""
    rule, images = backward.input_rule, backward.tape.graph.input
    if rule is None or not call.op.fuses_norms or read_from(backward, call) != images:
        return None
    return rule.relevance(c, backward.value(images), read_output(backward, call), linear_map(backward, call))
