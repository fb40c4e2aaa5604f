"""Where relevance goes: conservation call by call, completeness of heatmaps, non-finite values, a report of all.

Everything here runs the classifier once (in training mode that updates its BatchNorm statistics, as any
forward run does) and keeps every coefficient: meant for tests, notebooks and debugging, not for training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tw_seg.arguments import class_indices
from tw_seg.errors import InputError
from tw_seg.lrp.conservation.balance import (
    CallBalance,
    Completeness,
    Measure,
    at_readout,
    balance_calls,
    complete,
    measure,
)
from tw_seg.lrp.conservation.report import ClassTotals, Report, Row
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, refs
from tw_seg.lrp.core.tape import attribute
from tw_seg.lrp.decode.two_phase import select_pairs
from tw_seg.lrp.decoder import HeatmapDecoder


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
    backward = decoder.prepare(tape)
    return balance_calls(backward, kept, backward.wanted)


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
    backward, place = decoder.prepare(tape), tape.graph.readout(decoder.read_out[read_out])
    balances = balance_calls(backward, kept, tape.graph.downstream((place,)))
    return complete(backward, kept, balances, place)


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


@dataclass(frozen=True)
class ThresholdError:
    """What a threshold of the two-phase mode leaves out.

    Attributes:
        threshold: The threshold.
        pairs: Share of the (sample, class) pairs that are decoded again, 0 to 1.
        error: Length of the difference of all parameter gradients to the exact ones, relative to these.
    """

    threshold: float
    pairs: float
    error: float


def measure_gradient_threshold(
    decoder: HeatmapDecoder,
    images: Tensor,
    loss: Callable[[tuple[Tensor, ...]], Tensor],
    thresholds: Sequence[float],
    *,
    samples: Tensor | None = None,
) -> list[ThresholdError]:
    """Measure the gradient error of thresholds of the two-phase mode (``Schedule.gradient_threshold``) on a batch.

    Args:
        decoder: The decoder; its own threshold does not matter.
        images: Shape (N, C, H, W).
        loss: From the heatmaps (S, K, h, w) of each read-out to a scalar.
        thresholds: The thresholds.
        samples: Rows of the images to decode, int64 (S,); ``None`` for all.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
        >>> loss = lambda readouts: readouts[0][:, 1].square().sum()
        >>> images = torch.rand(1, 3, 6, 6).double()
        >>> [row] = measure_gradient_threshold(HeatmapDecoder(net), images, loss, [0.0])
        >>> row.pairs, row.error < 1e-14
        (0.5, True)
    """
    parameters = [p for p in decoder.parameters() if p.requires_grad]

    def gradients(threshold: float | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        one = copy.copy(decoder)
        one.schedule = replace(decoder.schedule, recompute=False, gradient_threshold=threshold)
        readouts = one(images, None, samples).readouts
        found = torch.autograd.grad(loss(readouts), [*parameters, *readouts], allow_unused=True)
        at_parameters = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=False)]
        at_heatmaps = [
            torch.zeros_like(r) if g is None else g for r, g in zip(readouts, found[-len(readouts) :], strict=True)
        ]
        return torch.cat([g.flatten() for g in at_parameters]), tuple(at_heatmaps)

    exact, at_heatmaps = gradients(None)
    return [
        ThresholdError(
            threshold,
            float(select_pairs(at_heatmaps, threshold).double().mean()),
            float((gradients(threshold)[0] - exact).norm() / exact.norm()),
        )
        for threshold in thresholds
    ]


@torch.no_grad()
def non_finite(decoder: HeatmapDecoder, images: Tensor, classes: Sequence[int] | Tensor | None = None) -> list[str]:
    """One line for each call whose output or coefficient is not finite, in the order of computing.

    The first line names the origin: NaN and infinity spread from there. An empty list: all is finite.
    """
    tape, kept = decoder.coefficients(images, classes)
    backward = decoder.prepare(tape)
    found = [
        f"{_label(backward, name)}: {bad} of {_numel(backward, name)} values of the activation are not finite"
        for name in tape.values
        if (bad := _bad_values(backward, kept, name))
    ]
    found += [
        f"{_label(backward, name)}: {bad} values of the coefficient are not finite"
        for name, c in kept.items()
        if (bad := _bad_parts(c))
    ]
    return found


def format_table(balances: Sequence[CallBalance]) -> str:
    """A table for people: means over samples and classes, and the largest share that is missing."""
    labels = [f"{b.path or '(root)'} ({b.kind})" for b in balances]
    width = max([len("call"), *map(len, labels)])
    head = f"{'call':<{width}}  {'out':>11}  {'in':>11}  {'bias':>11}  {'stabilizer':>11}  {'missing':>8}"
    lines = [head, "-" * len(head)]
    for label, b in zip(labels, balances, strict=True):
        cells = "  ".join(f"{term.mean().item():>11.4g}" for term in b.terms)
        lines.append(f"{label:<{width}}  {cells}  {_share_missing(b.missing, *b.terms):>8.1e}")
    return "\n".join(lines)


@torch.no_grad()
def report(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    tolerance: float | None = None,
    explosion: float = 1e6,
    **settings: Any,
) -> Report:
    """What happens to relevance in every call of a model, and what is wrong with it.

    Args:
        model: A :class:`HeatmapDecoder`, a model with one as its ``decoder``, or a classifier.
        images: Shape (N, C, H, W), of the classifier's type.
        classes: Classes to decode; ``None`` for all.
        tolerance: What may be missing in one call, relative to the largest term of its balance; ``None``: 1e-8 in
            float64, 1e-4 in float32, 3e-2 in half precision. What rounding can do to sums that cancel comes on top:
            16 units in the last place of the sum of the absolute relevance.
        explosion: By how much the sum of the absolute relevance at a read-out may exceed that at the logits, which
            is the magnitude of the logit. 16 untrained networks of torchvision and timm stayed below 500 with
            LRP-epsilon. The same factor downwards is noted, not blamed: a stabiliser may be meant to absorb.
        **settings: Arguments of the decoder that is made for a classifier, such as ``composite="epsilon_plus"``.

    Raises:
        InputError: For settings beside a decoder, which has its own.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        >>> found = report(net, torch.rand(1, 3, 6, 6), composite="epsilon_plus")
        >>> [(row.kind, row.rule) for row in found.rows][1:]
        [('reshape', 'pass'), ('relu', 'pass'), ('conv', 'ZPlus(stabilizer=1e-06, zero_bias=False)')]
        >>> found.violations
        ()
    """
    decoder = _decoder(model, settings)
    tape, kept = decoder.coefficients(images, classes)
    backward, dtype = decoder.prepare(tape), tape.logits.dtype
    chosen = tuple(int(k) for k in class_indices(classes, tape.logits.shape[1]))
    case = _Case(
        backward=backward,
        kept=kept,
        balances=balance_calls(backward, kept, backward.wanted),
        classes=chosen,
        start=measure(backward, tape.graph.output, kept[tape.graph.output], len(chosen)).absolute,
        bad={name: count for name in tape.axes if (count := _bad_values(backward, kept, name))},
        tolerance=_TOLERANCE.get(dtype, 3e-2) if tolerance is None else tolerance,
        eps=torch.finfo(dtype).eps,
    )
    notes, violations = _notes(decoder, case), _origins(case)
    # What is not finite has no balance; decoders that are not made to conserve are not blamed for it.
    conserving = not violations and not notes
    if conserving:
        violations += [text for b in case.balances if (text := _imbalance(case, b))]
    totals = []
    for place, name in zip(map(str, decoder.read_out), backward.readouts, strict=True):
        within = case.balances
        if len(backward.readouts) > 1:
            within = balance_calls(backward, kept, tape.graph.downstream((name,)))
        found, at_place = complete(backward, kept, within, name), at_readout(backward, kept, name)
        totals += _totals(case, place, found, at_place)
        if conserving:
            violations += _lost_between(case, place, found, within)
        if not case.bad:
            violations += [*_dead(case, place, at_place), *_exploding(case, place, at_place, explosion)]
            notes += _faint(case, place, at_place, explosion)
    return Report(
        classifier=type(decoder.classifier).__name__,
        images=tuple(images.shape),
        dtype=str(dtype).removeprefix("torch."),
        classes=chosen,
        rows=tuple(_row(case, b) for b in case.balances),
        totals=tuple(totals),
        notes=tuple(notes),
        violations=tuple(violations),
    )


_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
_ULPS = 16


@dataclass(frozen=True)
class _Case:
    """What a report is made from.

    Attributes:
        backward: The pass.
        kept: The coefficient at every call's output.
        balances: The balance of every call.
        classes: The decoded classes.
        start: Absolute relevance at the logits, (N, K').
        bad: Activation -> how many of its values are not finite, if any.
        tolerance: What may be missing, relative to the largest term.
        eps: Relative precision of the classifier's numbers.
    """

    backward: Backward
    kept: Mapping[str, Any]
    balances: list[CallBalance]
    classes: tuple[int, ...]
    start: Tensor
    bad: Mapping[str, int]
    tolerance: float
    eps: float

    def allowed(self, terms: Sequence[Tensor], absolute: Tensor) -> Tensor:
        """What may be missing, (N, K'): rounding of a sum is that of its terms, however small the sum is."""
        return self.tolerance * torch.stack([t.abs() for t in terms]).amax(0) + _ULPS * self.eps * absolute


def _decoder(model: nn.Module, settings: Mapping[str, Any]) -> HeatmapDecoder:
    inner = getattr(model, "decoder", None)
    decoder = inner if isinstance(inner, HeatmapDecoder) else model
    if not isinstance(decoder, HeatmapDecoder):
        return HeatmapDecoder(model, **settings)
    if settings:
        raise InputError(f"a decoder has its own settings, got {', '.join(settings)}: give them to HeatmapDecoder")
    return decoder


def _row(case: _Case, b: CallBalance) -> Row:
    scale = torch.stack([n.abs() for n in b.terms]).amax(0).sum()
    return Row(
        name=b.name,
        path=b.path,
        kind=b.kind,
        fused=b.fused,
        rule=b.rule,
        relevance_out=b.relevance_out.mean().item(),
        relevance_in=b.relevance_in.mean().item(),
        bias=_ratio(b.bias.abs().sum(), scale),
        missing=_share_missing(b.missing, *b.terms),
        dead=b.dead_in.mean().item(),
        growth=_ratio(b.absolute_in.sum(), b.absolute_out.sum()),
        absolute=_ratio(b.absolute_out.sum(), case.start.sum()),
        non_finite=int(b.non_finite.sum()) + sum(case.bad.get(name, 0) for name in (b.name, *b.fused)),
    )


def _totals(case: _Case, place: str, found: Completeness, at_place: Measure) -> list[ClassTotals]:
    return [
        ClassTotals(
            read_out=place,
            class_index=k,
            logit=case.backward.tape.logits[:, k].double().mean().item(),
            seed=found.logits[:, i].mean().item(),
            heatmap=found.heatmap[:, i].mean().item(),
            bias=found.bias[:, i].mean().item(),
            stabilizer=found.stabilizer[:, i].mean().item(),
            elsewhere=found.elsewhere[:, i].mean().item(),
            missing=_share_missing(found.missing[:, i], *(n[:, i] for n in found.terms)),
            absolute=_ratio(at_place.absolute[:, i].sum(), case.start[:, i].sum()),
        )
        for i, k in enumerate(case.classes)
    ]


def _share_missing(missing: Tensor, *terms: Tensor) -> float:
    """The most that is missing, relative to the largest term."""
    scale = torch.stack([t.abs() for t in terms]).amax().clamp(min=torch.finfo(torch.float64).tiny)
    return float(missing.abs().amax() / scale)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if part != 0 or whole != 0 else 0.0


def _label(backward: Backward, name: str) -> str:
    call = backward.calls.get(name)
    return "images" if call is None else f"{call.path or '(root)'} ({call.kind} {call.name!r})"


def _describe(b: CallBalance) -> str:
    return f"{b.path or '(root)'} ({b.kind} {b.name!r}, {b.rule})"


def _notes(decoder: HeatmapDecoder, case: _Case) -> list[str]:
    """Why conservation cannot be expected, if so."""
    own = {name.replace("/", "."): weight for name, weight in decoder.decoder_weights.items()}
    moved = [name for name, weight in own.items() if not torch.equal(weight, attribute(decoder.classifier, name))]
    notes = []
    if moved:
        notes.append(
            f"{len(moved)} of the decoder's {len(own)} untied weights differ from the classifier's (the first is "
            f"{moved[0]!r}), so its relevance is not that of the classifier: conservation is not checked."
        )
    if case.backward.heatmap == "coefficient":
        notes.append("the composite makes a modified gradient, not relevance: conservation is not checked.")
    elif changed := [b for b in case.balances if not case.backward.rules[b.name].conserves]:
        notes.append(f"{changed[0].rule} in {len(changed)} calls does not conserve: conservation is not checked.")
    return notes


def _imbalance(case: _Case, b: CallBalance) -> str:
    """A sentence if a call loses or makes relevance."""
    excess = b.missing.abs() - case.allowed(b.terms, b.absolute_out + b.absolute_in)
    if not bool((excess > 0).any()):
        return ""
    n, k = divmod(int(excess.argmax()), excess.shape[1])
    out, into, bias, stabilizer = (float(term[n, k]) for term in b.terms)
    return (
        f"{_describe(b)} does not conserve relevance: for image {n}, class {case.classes[k]}, of {out:.4g} at its "
        f"output {into:.4g} goes to its inputs, {bias:.4g} to constants and {stabilizer:.4g} to stabilisers; "
        f"{float(b.missing[n, k]):.4g} is missing."
    )


def _lost_between(case: _Case, place: str, found: Completeness, within: Sequence[CallBalance]) -> list[str]:
    """A sentence for each class of which relevance is missing that no call loses."""
    zero = torch.zeros_like(found.logits)
    lost = (found.missing - sum((b.missing for b in within), zero)).abs()
    absolute = torch.stack([zero, *(b.absolute_out + b.absolute_in for b in within)]).amax(0)
    wrong = (lost > case.allowed(found.terms, absolute)).any(0)
    return [
        f"between the logits and the read-out {place!r}, {float(lost[:, i].amax()):.4g} of the relevance of class {k} "
        "is lost that no call loses: please report this."
        for i, k in enumerate(case.classes)
        if wrong[i]
    ]


def _dead(case: _Case, place: str, at_place: Measure) -> list[str]:
    """A sentence if no coefficient but 0 arrives at a read-out for some image and class."""
    # A logit that is exactly 0, behind a ReLU, has no relevance to hand on; if all are, nothing was checked.
    dead = (at_place.dead == 1) & ((case.start != 0) | (case.start == 0).all())
    if not bool(dead.any()):
        return []
    n, k = divmod(int(dead.int().argmax()), dead.shape[1])
    where = "the seed"
    for b in case.balances:
        if b.dead_out[n, k] < 1 and b.dead_in[n, k] == 1:
            where = _describe(b) + (", whose weight is all zero" if _zero_weight(case, b) else "")
    absorbed = sum(float(b.stabilizer[n, k]) for b in case.balances)
    if abs(absorbed) > 0.5 * float(case.start[n, k]) > 0:
        where += f"; the stabilisers absorbed {absorbed / float(case.start[n, k]):.0%} of it"
    return [
        f"relevance dies before the read-out {place!r} in {int(dead.sum())} of {dead.numel()} pairs of image and "
        f"class: for image {n}, class {case.classes[k]} every coefficient is 0 after {where}."
    ]


def _zero_weight(case: _Case, b: CallBalance) -> bool:
    """Whether a call, or a BatchNorm in it, multiplies by nothing but zeros, as some networks do at first."""
    calls = [case.backward.calls[name] for name in (b.name, *b.fused)]
    weights = [case.backward.weight(call) for call in calls if call.op.linear_map is not None]
    return any(weight is not None and not weight.any() for weight in weights)


def _faint(case: _Case, place: str, at_place: Measure, explosion: float) -> list[str]:
    """A sentence if next to nothing arrives at a read-out, and one if some logits are exactly 0."""
    notes = []
    if none := int((case.start == 0).sum()):
        notes.append(f"{none} of {case.start.numel()} logits are exactly 0: their heatmaps at {place!r} are, too.")
    share = at_place.absolute.sum() / case.start.sum()
    if 0 < share < 1 / explosion:
        notes.append(
            f"at the read-out {place!r} the absolute relevance is {float(share):.1g} of that at the logits: biases and "
            "stabilisers absorb nearly all."
        )
    return notes


def _exploding(case: _Case, place: str, at_place: Measure, explosion: float) -> list[str]:
    """A sentence if the absolute relevance at a read-out is out of proportion to that at the logits."""
    # A logit near 0 by chance is no explosion: the image's largest counts.
    growth = (at_place.absolute / case.start.amax(1, keepdim=True)).nan_to_num()
    if not bool((growth > explosion).any()):
        return []
    n, k = divmod(int(growth.argmax()), growth.shape[1])
    return [
        f"relevance explodes: for image {n}, class {case.classes[k]} its absolute values at the read-out {place!r} sum "
        f"to {float(growth[n, k]):.2g} times those at the logits, more than {explosion:.2g}."
    ]


def _origins(case: _Case) -> list[str]:
    """A sentence for each place where NaN or infinity comes from."""
    backward, bad = case.backward, case.bad
    found = []
    for name in (backward.tape.graph.input, *(call.name for call in backward.tape.graph.calls)):
        call = backward.calls.get(name)
        if name in bad and (call is None or not any(source in bad for source in refs((call.args, call.kwargs)))):
            causes = [] if call is None else _bad_parameters(backward, call)
            because = f"; so are {', '.join(causes)}" if causes else ""
            found.append(
                f"{_label(backward, name)}: {bad[name]} of {_numel(backward, name)} values are not finite{because}."
            )
    for b in case.balances:
        known = (b.name, *b.fused, *(name for part in (b.name, *b.fused) for name in backward.calls[part].inputs))
        if bool(b.non_finite.any()) and not any(name in bad for name in known) and not _bad_parts(case.kept[b.name]):
            count = int(b.non_finite.sum())
            found.append(f"{_describe(b)} makes {count} coefficients that are not finite from numbers that are.")
    return found


def _bad_parameters(backward: Backward, call: Call) -> list[str]:
    """Names of the parameters, buffers and constants of a call that are not finite, with counts."""
    if call.fx_op == "call_module":
        module = backward.tape.modules[call.target]
        named = {f"{call.target}.{n}": t for n, t in (*module.named_parameters(), *module.named_buffers())}
    else:
        constants = [name for name in refs((call.args, call.kwargs)) if name not in backward.tape.axes]
        named = {str(backward.calls[name].target): backward.tape.values[name] for name in constants}
    tensors = {name: t for name, t in named.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return [f"{_not_finite(t)} of {t.numel()} values of {name}" for name, t in tensors.items() if _not_finite(t)]


def _bad_values(backward: Backward, kept: Mapping[str, Any], name: str) -> int:
    """How many values of an activation are not finite; minus infinity without relevance is a masked score."""
    value, c = backward.tape.values[name], kept.get(name)
    if name not in backward.tape.axes or not isinstance(value, Tensor) or not _not_finite(value):
        return 0
    masked = value == -torch.inf
    if isinstance(c, Tensor):
        axis = backward.axis(name)
        masked = masked & (c == 0).unflatten(axis, (-1, value.shape[axis])).all(axis)
    return _not_finite(value.masked_fill(masked, 0.0))


def _bad_parts(c: Any) -> int:
    return sum(_not_finite(part) for part in (c.values() if isinstance(c, dict) else [c]))


def _not_finite(value: Tensor) -> int:
    return int(value.numel() - value.isfinite().sum())


def _numel(backward: Backward, name: str) -> int:
    return int(backward.tape.values[name].numel())
