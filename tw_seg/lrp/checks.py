"""Where relevance goes: conservation call by call, completeness of heatmaps, non-finite values.

Everything here runs the classifier once (in training mode that updates its BatchNorm statistics, as any
forward run does) and keeps every coefficient: meant for tests, notebooks and debugging, not for training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tw_seg.lrp.adjoints import stabilize
from tw_seg.lrp.decoder import HeatmapDecoder
from tw_seg.lrp.graph import Call, Ref
from tw_seg.lrp.propagate import Pass, before_norm, fused_norm, input_relevance, linear_map, step
from tw_seg.lrp.seeds import class_indices
from tw_seg.lrp.tape import Tape, batch_statistics


@dataclass(frozen=True)
class CallBalance:
    """What one call does with the relevance at its output; every tensor has shape (N, K') and is float64.

    ``relevance_out = relevance_in + bias + stabilizer`` up to rounding, with tied weights.

    Attributes:
        name: Name of the call.
        path: Path of the module it happens in.
        kind: Kind of the call; ``"conv+batch_norm"`` for a pair that a rule sees as one.
        relevance_out: Relevance at the call's output.
        relevance_in: Relevance that it hands to its inputs.
        elsewhere: The share of ``relevance_in`` that goes to inputs from which no read-out can be reached.
        bias: Relevance that biases, BatchNorm shifts and added constants absorb.
        stabilizer: Relevance that the stabiliser of the rule's denominator absorbs.
    """

    name: str
    path: str
    kind: str
    relevance_out: Tensor
    relevance_in: Tensor
    elsewhere: Tensor
    bias: Tensor
    stabilizer: Tensor

    @property
    def missing(self) -> Tensor:
        """Relevance that is not accounted for, shape (N, K'); rounding only where all is well."""
        return self.relevance_out - self.relevance_in - self.bias - self.stabilizer


@dataclass(frozen=True)
class Completeness:
    """Where each logit went, relative to one read-out; every tensor has shape (N, K') and is float64.

    ``logits = heatmap + bias + stabilizer + elsewhere`` up to rounding, with tied weights.

    Attributes:
        logits: The decoded logits.
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
    def missing(self) -> Tensor:
        """The part of the logits that is not accounted for, shape (N, K')."""
        return self.logits - self.heatmap - self.bias - self.stabilizer - self.elsewhere


@torch.no_grad()
def conservation(
    decoder: HeatmapDecoder, images: Tensor, classes: Sequence[int] | Tensor | None = None
) -> list[CallBalance]:
    """The balance of every call on the way from the logits to the deepest read-out, in that order.

    Args:
        decoder: The decoder; where it has several read-outs, calls above the deepest one are balanced.
        images: Shape (N, C, H, W).
        classes: Classes to decode; ``None`` for all.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from tw_seg.lrp import HeatmapDecoder
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
        >>> balances = conservation(HeatmapDecoder(net), torch.rand(1, 3, 6, 6).double())
        >>> [b.kind for b in balances]
        ['linear', 'reshape', 'relu', 'conv']
        >>> all(b.missing.abs().max() < 1e-10 for b in balances)
        True
    """
    tape, kept = decoder.coefficients(images, classes)
    return _balances(decoder, tape, kept, decoder.prepare(tape).wanted)


@torch.no_grad()
def completeness(
    decoder: HeatmapDecoder,
    images: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    read_out: int = 0,
) -> Completeness:
    """Account for every logit: what the heatmap holds, and what was absorbed or went elsewhere.

    Args:
        decoder: The decoder.
        images: Shape (N, C, H, W).
        classes: Classes to decode; ``None`` for all.
        read_out: Which of the decoder's read-outs, by position.
    """
    tape, kept = decoder.coefficients(images, classes)
    graph = decoder.graph()
    place = graph.readout(decoder.read_out[read_out])
    balances = _balances(decoder, tape, kept, graph.downstream((place,)))
    chosen = torch.as_tensor(class_indices(classes, tape.logits.shape[1]), device=images.device).long()
    logits = tape.logits.index_select(1, chosen).double()
    zero = torch.zeros_like(logits)
    # What calls hand to the read-out is its heatmap; in-between sums need no book of their own.
    bias = sum((b.bias for b in balances), zero)
    stabilizer = sum((b.stabilizer for b in balances), zero)
    elsewhere = sum((b.elsewhere for b in balances), zero)
    return Completeness(logits, _heatmap_sum(decoder, tape, kept, place), bias, stabilizer, elsewhere)


def bias_relevance(
    decoder: HeatmapDecoder,
    images: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    read_out: int = 0,
) -> Tensor:
    """Relevance absorbed by biases, BatchNorm shifts and added constants, shape (N, K'), units of the logit.

    With ``epsilon = 0`` and every path through the read-out: ``logit = heatmap sum + bias relevance``.
    """
    return completeness(decoder, images, classes, read_out=read_out).bias


@torch.no_grad()
def non_finite(decoder: HeatmapDecoder, images: Tensor, classes: Sequence[int] | Tensor | None = None) -> list[str]:
    """One line for each call whose output or coefficient is not finite, in the order of computing.

    The first line names the origin: NaN and infinity spread from there. An empty list: all is finite.
    """
    tape, kept = decoder.coefficients(images, classes)
    graph = decoder.graph()
    labels = {graph.input: "images"}
    labels.update({c.name: f"{c.path or '(root)'} ({c.kind} {c.name!r})" for c in graph.calls})
    values = {name: v for name, v in tape.values.items() if isinstance(v, Tensor) and v.is_floating_point()}
    found = [_count(labels[name], "activation", value) for name, value in values.items()]
    found += [_count(labels[name], "coefficient", c) for name, c in kept.items()]
    return [line for line in found if line]


def format_table(balances: Sequence[CallBalance]) -> str:
    """A table for people: means over samples and classes, and the largest share that is missing."""
    width = max([len("call"), *(len(_label(b)) for b in balances)])
    head = f"{'call':<{width}}  {'out':>11}  {'in':>11}  {'bias':>11}  {'stabilizer':>11}  {'missing':>8}"
    lines = [head, "-" * len(head)]
    for b in balances:
        numbers = (b.relevance_out, b.relevance_in, b.bias, b.stabilizer)
        scale = torch.stack([n.abs() for n in numbers]).amax().clamp(min=torch.finfo(torch.float64).tiny)
        cells = "  ".join(f"{n.mean().item():>11.4g}" for n in numbers)
        lines.append(f"{_label(b):<{width}}  {cells}  {(b.missing.abs().amax() / scale).item():>8.1e}")
    return "\n".join(lines)


def _label(balance: CallBalance) -> str:
    return f"{balance.path or '(root)'} ({balance.kind})"


def _count(label: str, what: str, value: Tensor) -> str:
    bad = int(value.numel() - value.isfinite().sum())
    return f"{label}: {bad} of {value.numel()} values of the {what} are not finite" if bad else ""


def _total(relevance: Tensor) -> Tensor:
    """(N, K, ...) -> (N, K), in float64."""
    return relevance.double().flatten(2).sum(2)


def _balances(
    decoder: HeatmapDecoder, tape: Tape, kept: Mapping[str, Tensor], wanted: frozenset[str]
) -> list[CallBalance]:
    run = decoder.prepare(tape)
    graph = decoder.graph()
    calls = {call.name: call for call in graph.calls}
    balances = []
    for call in reversed(graph.calls):
        # A read-out's own call hands nothing on.
        if call.name not in kept or not any(name in wanted for name in call.inputs):
            continue
        source = calls.get(call.inputs[0])
        if source is None or fused_norm(run, source) != call.name:
            balances.append(_balance(run, call, kept[call.name], calls, wanted))
        elif not any(name in wanted for name in source.inputs):
            balances.append(_norm_balance(run, source, call, kept[call.name]))
    return balances


def _norm_balance(run: Pass, source: Call, norm: Call, c: Tensor) -> CallBalance:
    """The balance of a fused BatchNorm alone: the heatmap is read between it and its convolution."""
    handed = before_norm(run, source, c, {norm.name: norm})
    shift = _affine(run, norm)[1]
    out, into = (_total(run.value(n).unsqueeze(1) * x) for n, x in ((norm.name, c), (source.name, handed)))
    zero = torch.zeros_like(out)
    bias = _total(c * _per_channel(shift, c))
    return CallBalance(norm.name, norm.path, norm.kind, out, into, zero, bias, zero)


def _balance(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call], wanted: frozenset[str]) -> CallBalance:
    fused = fused_norm(run, call)
    z = run.value(fused or call.name).unsqueeze(1)
    out = _total(z * c)
    zero = torch.zeros_like(out)
    at_input = input_relevance(run, call, c, calls)
    if at_input is not None:
        handed = {call.inputs[0]: _total(at_input)}
        bias, stabilizer = zero, _absorbed_at_input(run, call, c, calls)
    else:
        parts = step(run, call, c, calls)
        handed = {name: _total(run.value(name).unsqueeze(1) * part) for name, part in parts.items()}
        shared = c
        stabilizer = zero
        if call.kind in _STABILIZED:
            shared = run.composite.rule(call).share(c, z.squeeze(1))
            stabilizer = _total(z * (c - shared))
        bias = _bias(run, call, shared, calls, zero)
    elsewhere = sum((r for name, r in handed.items() if name not in wanted), zero)
    kind = f"{call.kind}+batch_norm" if fused else call.kind
    return CallBalance(call.name, call.path, kind, out, sum(handed.values(), zero), elsewhere, bias, stabilizer)


_STABILIZED = ("conv", "linear", "batch_norm", "avg_pool2d", "adaptive_avg_pool2d", "mean")
"""Kinds that a rule with a stabilised denominator acts on."""


def _absorbed_at_input(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call]) -> Tensor:
    """What the stabiliser of an input rule absorbs; such a rule gives biases nothing."""
    rule = run.composite.input
    assert rule is not None
    relevance = c * run.value(fused_norm(run, call) or call.name).unsqueeze(1)
    bottom = rule.denominator(run.value(call.inputs[0]), linear_map(run, call, calls)).unsqueeze(1)
    return _total(relevance * (1 - bottom / stabilize(bottom, rule.stabilizer)))


def _bias(run: Pass, call: Call, c: Tensor, calls: Mapping[str, Call], zero: Tensor) -> Tensor:
    """Relevance of the terms of a call's output that are no inputs."""
    if call.kind in ("conv", "linear"):
        bias = run.tape.parameter(call, "bias")
        if (fused := fused_norm(run, call)) is not None:
            scale, shift = _affine(run, calls[fused])
            bias = shift if bias is None else shift + scale * bias
        if bias is None:
            return zero
        return _total(c * (bias if call.kind == "linear" else _per_channel(bias, c)))
    if call.kind == "batch_norm":
        return _total(c * _per_channel(_affine(run, call)[1], c))
    if call.kind in ("add", "cat"):
        return _constants(run, call, c, zero)
    return zero


def _affine(run: Pass, norm: Call) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel of a BatchNorm call."""
    source = run.tape.values[norm.inputs[0]]
    if batch_statistics(run.tape, norm):
        mean: Tensor | None = source.mean([0, *range(2, source.ndim)])
    else:
        mean = run.tape.parameter(norm, "running_mean")
    assert mean is not None
    scale = run.norm_scale(norm)
    bias = run.tape.parameter(norm, "bias")
    return scale, -mean * scale if bias is None else bias - mean * scale


def _per_channel(vector: Tensor, c: Tensor) -> Tensor:
    """(C,) -> a shape that broadcasts with a coefficient (N, K, C, ...)."""
    return vector.reshape(-1, *([1] * (c.ndim - 3)))


def _constants(run: Pass, call: Call, c: Tensor, zero: Tensor) -> Tensor:
    """Relevance of the operands of a sum or concatenation that do not depend on the images."""
    absorbed = zero
    if call.kind == "add":
        for name, factor in (("input", 1), ("other", call.options.get("alpha", 1))):
            operand = call.options[name]
            if isinstance(operand, Ref) and operand.name in call.inputs:
                continue
            value = torch.as_tensor(run.tape.resolve(operand), dtype=c.dtype, device=c.device)
            # As in the sum itself: a constant with a batch axis of its own has none for the classes.
            if value.ndim == c.ndim - 1:
                value = value.unsqueeze(1)
            absorbed = absorbed + _total(c * value * factor)
        return absorbed
    dim = call.options.get("dim", 0) % (c.ndim - 1)
    start = 0
    for ref in call.options["input"]:
        value = run.tape.values[ref.name]
        if ref.name not in call.inputs:
            absorbed = absorbed + _total(c.narrow(dim + 1, start, value.shape[dim]) * value.unsqueeze(1))
        start += value.shape[dim]
    return absorbed


def _heatmap_sum(decoder: HeatmapDecoder, tape: Tape, kept: Mapping[str, Tensor], place: str) -> Tensor:
    """Sum of the heatmap at a read-out, from the same run."""
    run, graph = decoder.prepare(tape), decoder.graph()
    calls = {call.name: call for call in graph.calls}
    shape = kept[graph.output].shape[:2]
    total = torch.zeros(shape, dtype=torch.float64, device=tape.logits.device)
    if place in kept:
        c = kept[place]
        if place in calls:
            c = before_norm(run, calls[place], c, calls)
        total = total + _total(run.value(place).unsqueeze(1) * c)
    if place == graph.input:
        for call in graph.calls:
            at_input = input_relevance(run, call, kept[call.name], calls) if call.name in kept else None
            total = total if at_input is None else total + _total(at_input)
    return total
