"""What each call does with relevance, and where a logit went; `tw_seg.lrp.conservation.diagnose` judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.linear_map import times
from tw_seg.lrp.ops.fusion import (
    fused_norm,
    input_relevance,
    linear_map,
    norm_affine,
    norm_before,
    pass_fused_norm,
    read_from,
    read_output,
)
from tw_seg.lrp.ops.op import stabilize_terms


@dataclass(frozen=True)
class CallBalance:
    """What one call does with the relevance at its output; every tensor has shape (N, K') and is float64.

    ``relevance_out = relevance_in + bias + stabilizer`` up to rounding, with tied weights.

    Attributes:
        name: Name of the call.
        path: Path of the module it happens in.
        kind: Kind of the call; ``"conv+batch_norm"`` or ``"batch_norm+conv"`` for calls that a rule sees as one.
        fused: Names of the BatchNorm calls in it, beside ``name``.
        rule: Its rule as text.
        relevance_out: Relevance at the call's output.
        relevance_in: Relevance that it hands to its inputs.
        elsewhere: The share of ``relevance_in`` that goes to inputs from which no read-out can be reached.
        bias: Relevance that biases, BatchNorm shifts, added constants and the constants of first-order expansions
            (softmax, sigmoid) absorb.
        stabilizer: Relevance that the stabiliser of the rule's denominator absorbs.
        absolute_out: Sum of the absolute relevance at the output.
        absolute_in: Sum of the absolute relevance at the inputs.
        zeros_out: Share, 0 to 1, of the coefficients at the output that are exactly 0.
        zeros_in: The same of those that it hands on.
        non_finite: How many of those that it hands on are not finite.
    """

    name: str
    path: str
    kind: str
    fused: tuple[str, ...]
    rule: str
    relevance_out: Tensor
    relevance_in: Tensor
    elsewhere: Tensor
    bias: Tensor
    stabilizer: Tensor
    absolute_out: Tensor
    absolute_in: Tensor
    zeros_out: Tensor
    zeros_in: Tensor
    non_finite: Tensor

    @property
    def terms(self) -> tuple[Tensor, ...]:
        """The four terms of the balance."""
        return self.relevance_out, self.relevance_in, self.bias, self.stabilizer

    @property
    def missing(self) -> Tensor:
        """Relevance that is not accounted for, shape (N, K'); rounding only where all is well."""
        return self.relevance_out - self.relevance_in - self.bias - self.stabilizer


@dataclass(frozen=True)
class Completeness:
    """Where each logit went, relative to one read-out; every tensor has shape (N, K') and is float64.

    ``logits = heatmap + bias + stabilizer + elsewhere`` up to rounding, with tied weights.

    Attributes:
        logits: The decoded logits; with another seed than ``"logit"``, the relevance at the logits.
        heatmap: Sum of the heatmap at the read-out.
        bias: Relevance that biases, BatchNorm shifts and added constants absorbed on the way.
        stabilizer: Relevance that stabilisers absorbed on the way.
        elsewhere: Relevance that passed the read-out by, for example on a skip connection.
    """

    logits: Tensor
    heatmap: Tensor
    bias: Tensor
    stabilizer: Tensor
    elsewhere: Tensor

    @property
    def terms(self) -> tuple[Tensor, ...]:
        """The five terms of the account."""
        return self.logits, self.heatmap, self.bias, self.stabilizer, self.elsewhere

    @property
    def missing(self) -> Tensor:
        """The part of the logits that is not accounted for, shape (N, K')."""
        return self.logits - self.heatmap - self.bias - self.stabilizer - self.elsewhere


@dataclass(frozen=True)
class Measure:
    """Sums over the coefficients of each sample and class, every tensor (N, K)."""

    total: Tensor
    absolute: Tensor
    zeros: Tensor
    non_finite: Tensor
    size: int

    def __add__(self, other: Measure) -> Measure:
        return Measure(
            self.total + other.total,
            self.absolute + other.absolute,
            self.zeros + other.zeros,
            self.non_finite + other.non_finite,
            self.size + other.size,
        )

    @property
    def zero_share(self) -> Tensor:
        """Share of the coefficients that are exactly 0; 1 if there are none."""
        return self.zeros / self.size if self.size else torch.ones_like(self.zeros)


def measure(backward: Backward, name: str, c: Any, classes: int) -> Measure:
    """Sums of a coefficient at a call's value."""
    value, axis = backward.tape.values[name], backward.axis(name)
    pairs = [(part, value[index]) for index, part in c.items()] if isinstance(c, dict) else [(c, value)]
    result = _measure_nothing(backward, classes)
    for part, at in pairs:
        # Minus infinity, where attention is masked, has no relevance.
        relevance = times(part, at, axis).masked_fill(part == 0, 0.0)
        result = result + _measure_relevance(backward, relevance, axis, classes, part)
    return result


def _measure_relevance(
    backward: Backward, relevance: Tensor, axis: int, classes: int, c: Tensor | None = None
) -> Measure:
    c = relevance if c is None else c
    zeros, bad = (_sum_rows(backward, mask, axis, classes) for mask in (c == 0, ~c.isfinite()))
    total, absolute = (_sum_rows(backward, part, axis, classes) for part in (relevance, relevance.abs()))
    return Measure(total, absolute, zeros, bad, c.numel() // total.numel() if total.numel() else 0)


def _measure_nothing(backward: Backward, classes: int) -> Measure:
    images = backward.tape.images
    zero = torch.zeros(images.shape[0], classes, dtype=torch.float64, device=images.device)
    return Measure(zero, zero, zero, zero, 0)


def _sum_rows(backward: Backward, values: Tensor, axis: int, classes: int) -> Tensor:
    """(.., K*N*r, ..) -> (N, K), in float64."""
    rows = values.movedim(axis, 0).unsqueeze(-1).flatten(1).sum(1, dtype=torch.float64)
    return rows.reshape(classes, backward.tape.images.shape[0], -1).sum(2).T


def balance_calls(backward: Backward, kept: Mapping[str, Any], wanted: frozenset[str]) -> list[CallBalance]:
    """The balance of every call, from the logits to ``wanted``, the calls whose coefficient is needed.

    Args:
        backward: The pass.
        kept: The coefficient at every call's output.
        wanted: Calls from which the read-outs in question can be reached.
    """
    graph = backward.tape.graph
    classes = kept[graph.output].shape[0] // backward.tape.images.shape[0]
    balances = []
    for call in reversed(list(backward.calls.values())):
        # A read-out's own call hands nothing on.
        if call.name not in kept or not any(name in wanted for name in call.inputs):
            continue
        reader = backward.calls.get(call.inputs[0])
        if reader is None or fused_norm(backward, reader) != call.name:
            balances.append(_balance(backward, call, kept[call.name], wanted, classes))
        elif not any(name in wanted for name in reader.inputs):
            balances.append(_norm_balance(backward, reader, call, kept[call.name], classes))
    return balances


def _norm_balance(backward: Backward, source: Call, norm: Call, c: Tensor, classes: int) -> CallBalance:
    """The balance of a fused BatchNorm alone: the heatmap is read between it and its convolution."""
    shift = norm_affine(backward, norm)[1]
    return _make_balance(
        norm,
        kind=norm.kind,
        fused=(),
        rule="pass",
        out=measure(backward, norm.name, c, classes),
        into=measure(backward, source.name, pass_fused_norm(backward, source, c), classes),
        bias=_sum_rows(backward, c * shift.reshape(-1, *[1] * (c.ndim - 2)), 0, classes),
    )


def _balance(backward: Backward, call: Call, c: Any, wanted: frozenset[str], classes: int) -> CallBalance:
    op, after, axis = call.op, fused_norm(backward, call), backward.axis(call.name)
    before = norm_before(backward, call) if op.linear_map is not None else None
    out = measure(backward, after or call.name, c, classes)
    bias = stabilizer = zero = torch.zeros_like(out.total)
    at_input = input_relevance(backward, call, c)
    if at_input is not None:
        name = read_from(backward, call)
        handed = {name: _measure_relevance(backward, at_input, backward.axis(name), classes)}
    else:
        parts = op.adjoint(backward, call, c)
        handed = {name: measure(backward, name, part, classes) for name, part in parts.items()}
    if op.linear_map is not None:
        rule: Any = backward.rules[call.name] if at_input is None else backward.input_rule
        a, z = backward.value(read_from(backward, call)), read_output(backward, call)
        absorbed = rule.balance(c, a, z, linear_map(backward, call))
        bias, stabilizer = (_sum_rows(backward, part, axis, classes) for part in absorbed)
    else:
        stabilizer = _measure_stabilizer(backward, call, c, classes)
        if op.absorbed is not None:
            bias = _sum_rows(backward, op.absorbed(backward, call, c), axis, classes)
    into = sum(handed.values(), _measure_nothing(backward, classes))
    if not op.conserves:
        bias = out.total - into.total - stabilizer
    return _make_balance(
        call,
        kind="+".join(backward.calls[name].kind for name in (before, call.name, after) if name),
        fused=tuple(name for name in (before, after) if name),
        rule=_describe_rule(backward, call, frozenset(handed)) if at_input is None else str(backward.input_rule),
        out=out,
        into=into,
        elsewhere=sum((m.total for name, m in handed.items() if name not in wanted), zero),
        bias=bias,
        stabilizer=stabilizer,
    )


def _make_balance(
    call: Call,
    *,
    kind: str,
    fused: tuple[str, ...],
    rule: str,
    out: Measure,
    into: Measure,
    bias: Tensor,
    stabilizer: Tensor | None = None,
    elsewhere: Tensor | None = None,
) -> CallBalance:
    zero = torch.zeros_like(out.total)
    return CallBalance(
        name=call.name,
        path=call.path,
        kind=kind,
        fused=fused,
        rule=rule,
        relevance_out=out.total,
        relevance_in=into.total,
        elsewhere=zero if elsewhere is None else elsewhere,
        bias=bias,
        stabilizer=zero if stabilizer is None else stabilizer,
        absolute_out=out.absolute,
        absolute_in=into.absolute,
        zeros_out=out.zero_share,
        zeros_in=into.zero_share,
        non_finite=into.non_finite,
    )


def _measure_stabilizer(backward: Backward, call: Call, c: Any, classes: int) -> Tensor:
    """What the epsilon of a sum's or a product's rule absorbs."""
    if call.op.stabilised is None:
        return _measure_nothing(backward, classes).total
    factors = call.op.stabilised(call)
    handed = factors * stabilize_terms(backward, call, c, factors)
    return measure(backward, call.name, c - handed, classes).total


def _describe_rule(backward: Backward, call: Call, handed: frozenset[str]) -> str:
    """The rule of a call in words; ``handed`` names the inputs that get relevance."""
    text = call.op.text
    return text if isinstance(text, str) else text(backward, call, handed)


def balance_logits(
    backward: Backward, kept: Mapping[str, Any], balances: Sequence[CallBalance], place: str
) -> Completeness:
    """Account for every logit by the balances of the calls between it and a read-out."""
    seed = kept[backward.tape.graph.output]
    logits = measure(backward, backward.tape.graph.output, seed, seed.shape[0] // backward.tape.images.shape[0]).total
    zero = torch.zeros_like(logits)
    # What calls hand to the read-out is its heatmap; sums in between are part of it.
    bias = sum((b.bias for b in balances), zero)
    stabilizer = sum((b.stabilizer for b in balances), zero)
    elsewhere = sum((b.elsewhere for b in balances), zero)
    return Completeness(logits, measure_readout(backward, kept, place).total, bias, stabilizer, elsewhere)


def measure_readout(backward: Backward, kept: Mapping[str, Any], place: str) -> Measure:
    """Sums of the relevance at a read-out, from the same run."""
    graph, axis = backward.tape.graph, backward.axis(place)
    classes = kept[graph.output].shape[0] // backward.tape.images.shape[0]
    by_rule: list[Tensor] = []
    if place == graph.input:
        for call in backward.calls.values():
            at_input = input_relevance(backward, call, kept[call.name]) if call.name in kept else None
            by_rule += [] if at_input is None else [at_input]
    if place not in kept:
        return (
            _measure_relevance(backward, torch.stack(by_rule).sum(0), axis, classes)
            if by_rule
            else _measure_nothing(backward, classes)
        )
    c = kept[place] if place not in backward.calls else pass_fused_norm(backward, backward.calls[place], kept[place])
    if by_rule:
        total = times(c, backward.value(place), axis) + torch.stack(by_rule).sum(0)
        return _measure_relevance(backward, total, axis, classes)
    return measure(backward, place, c, classes)
