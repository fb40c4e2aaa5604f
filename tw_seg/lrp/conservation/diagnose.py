"""Where relevance goes: conservation call by call, completeness of heatmaps, non-finite values, a report of all.

Everything here runs the classifier once (in training mode that updates its BatchNorm statistics, as any
forward run does) and keeps every coefficient: meant for tests, notebooks and debugging, not for training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tw_seg.arguments import class_indices
from tw_seg.errors import InputError
from tw_seg.lrp.conservation.balance import (
    CallBalance,
    Completeness,
    balance_calls,
    balance_logits,
    measure,
    measure_readout,
)
from tw_seg.lrp.conservation.findings import (
    Case,
    count_bad_parts,
    count_bad_values,
    describe_place,
    find_explosion,
    find_imbalance,
    find_loss_between,
    find_not_finite,
    find_reasons_not_to_check,
    find_vanished,
    note_faint,
)
from tw_seg.lrp.conservation.report import Report, summarize_call, summarize_classes
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

    Examples:
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
    return balance_logits(backward, kept, balances, place)


@torch.no_grad()
def non_finite(decoder: HeatmapDecoder, images: Tensor, classes: Sequence[int] | Tensor | None = None) -> list[str]:
    """One line for each call whose output or coefficient is not finite, in the order of computing.

    The first line names the origin: NaN and infinity spread from there. An empty list: all is finite.
    """
    tape, kept = decoder.coefficients(images, classes)
    backward = decoder.prepare(tape)
    found = [
        f"{describe_place(backward, name)}: {bad} of {value.numel()} values of the activation are not finite"
        for name, value in tape.values.items()
        if (bad := count_bad_values(backward, kept, name))
    ]
    found += [
        f"{describe_place(backward, name)}: {bad} values of the coefficient are not finite"
        for name, c in kept.items()
        if (bad := count_bad_parts(c))
    ]
    return found


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
        model: A `HeatmapDecoder`, a model with one as its ``decoder``, or a classifier.
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

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        >>> found = report(net, torch.rand(1, 3, 6, 6), composite="epsilon_plus")
        >>> [(row.kind, row.rule) for row in found.rows][1:]
        [('reshape', 'pass'), ('relu', 'pass'), ('conv', 'ZPlus(stabilizer=1e-06, zero_bias=False)')]
        >>> found.violations
        ()
    """
    decoder = _find_decoder(model, settings)
    tape, kept = decoder.coefficients(images, classes)
    backward, dtype = decoder.prepare(tape), tape.logits.dtype
    chosen = tuple(int(k) for k in class_indices(classes, tape.logits.shape[1]))
    case = Case(
        backward=backward,
        kept=kept,
        balances=balance_calls(backward, kept, backward.wanted),
        classes=chosen,
        start=measure(backward, tape.graph.output, kept[tape.graph.output], len(chosen)).absolute,
        bad={name: count for name in tape.axes if (count := count_bad_values(backward, kept, name))},
        tolerance=_TOLERANCE.get(dtype, 3e-2) if tolerance is None else tolerance,
        eps=torch.finfo(dtype).eps,
    )
    notes, violations = find_reasons_not_to_check(decoder, case), find_not_finite(case)
    # What is not finite has no balance; decoders that are not made to conserve are not blamed for it.
    conserving = not violations and not notes
    if conserving:
        violations += [text for b in case.balances if (text := find_imbalance(case, b))]
    totals = []
    for place, name in zip(map(str, decoder.read_out), backward.readouts, strict=True):
        within = case.balances
        if len(backward.readouts) > 1:
            within = balance_calls(backward, kept, tape.graph.downstream((name,)))
        found, at_place = balance_logits(backward, kept, within, name), measure_readout(backward, kept, name)
        totals += summarize_classes(case, place, found, at_place)
        if conserving:
            violations += find_loss_between(case, place, found, within)
        if not case.bad:
            violations += [*find_vanished(case, place, at_place), *find_explosion(case, place, at_place, explosion)]
            notes += note_faint(case, place, at_place, explosion)
    return Report(
        classifier=type(decoder.classifier).__name__,
        images=tuple(images.shape),
        dtype=str(dtype).removeprefix("torch."),
        classes=chosen,
        rows=tuple(summarize_call(case, b) for b in case.balances),
        totals=tuple(totals),
        notes=tuple(notes),
        violations=tuple(violations),
    )


_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


def _find_decoder(model: nn.Module, settings: Mapping[str, Any]) -> HeatmapDecoder:
    inner = getattr(model, "decoder", None)
    decoder = inner if isinstance(inner, HeatmapDecoder) else model
    if not isinstance(decoder, HeatmapDecoder):
        return HeatmapDecoder(model, **settings)
    if settings:
        raise InputError(f"a decoder has its own settings, got {', '.join(settings)}: give them to HeatmapDecoder")
    return decoder
