"""What is wrong with the relevance in a model: a sentence for each thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tw_seg.lrp.conservation.balance import CallBalance, Completeness, Measure
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, refs
from tw_seg.lrp.core.tape import attribute
from tw_seg.lrp.decoder import HeatmapDecoder

_ULPS = 16


@dataclass(frozen=True)
class Case:
    """One run of a model, from which findings and a report are made.

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


def describe_place(backward: Backward, name: str) -> str:
    """Where a value is computed, for messages."""
    call = backward.calls.get(name)
    return "images" if call is None else f"{call.path or '(root)'} ({call.kind} {call.name!r})"


def _describe_call(b: CallBalance) -> str:
    return f"{b.path or '(root)'} ({b.kind} {b.name!r}, {b.rule})"


def find_reasons_not_to_check(decoder: HeatmapDecoder, case: Case) -> list[str]:
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


def find_imbalance(case: Case, b: CallBalance) -> str:
    """A sentence if a call loses or makes relevance."""
    excess = b.missing.abs() - case.allowed(b.terms, b.absolute_out + b.absolute_in)
    if not bool((excess > 0).any()):
        return ""
    n, k = divmod(int(excess.argmax()), excess.shape[1])
    out, into, bias, stabilizer = (float(term[n, k]) for term in b.terms)
    return (
        f"{_describe_call(b)} does not conserve relevance: for image {n}, class {case.classes[k]}, of {out:.4g} at its "
        f"output {into:.4g} goes to its inputs, {bias:.4g} to constants and {stabilizer:.4g} to stabilisers; "
        f"{float(b.missing[n, k]):.4g} is missing."
    )


def find_loss_between(case: Case, place: str, found: Completeness, within: Sequence[CallBalance]) -> list[str]:
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


def find_vanished(case: Case, place: str, at_place: Measure) -> list[str]:
    """A sentence if no coefficient but 0 arrives at a read-out for some image and class."""
    # A logit that is exactly 0, behind a ReLU, has no relevance to hand on; if all are, nothing was checked.
    vanished = (at_place.zero_share == 1) & ((case.start != 0) | (case.start == 0).all())
    if not bool(vanished.any()):
        return []
    n, k = divmod(int(vanished.int().argmax()), vanished.shape[1])
    where = "the seed"
    for b in case.balances:
        if b.zeros_out[n, k] < 1 and b.zeros_in[n, k] == 1:
            where = _describe_call(b) + (", whose weight is all zero" if _has_zero_weight(case, b) else "")
    absorbed = sum(float(b.stabilizer[n, k]) for b in case.balances)
    if abs(absorbed) > 0.5 * float(case.start[n, k]) > 0:
        where += f"; the stabilisers absorbed {absorbed / float(case.start[n, k]):.0%} of it"
    return [
        f"no relevance reaches the read-out {place!r} in {int(vanished.sum())} of {vanished.numel()} pairs of image "
        f"and class: for image {n}, class {case.classes[k]} every coefficient is 0 after {where}."
    ]


def _has_zero_weight(case: Case, b: CallBalance) -> bool:
    """Whether a call, or a BatchNorm in it, multiplies by nothing but zeros, as some networks do at first."""
    calls = [case.backward.calls[name] for name in (b.name, *b.fused)]
    weights = [case.backward.weight(call) for call in calls if call.op.linear_map is not None]
    return any(weight is not None and not weight.any() for weight in weights)


def note_faint(case: Case, place: str, at_place: Measure, explosion: float) -> list[str]:
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


def find_explosion(case: Case, place: str, at_place: Measure, explosion: float) -> list[str]:
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


def find_not_finite(case: Case) -> list[str]:
    """A sentence for each place where NaN or infinity comes from."""
    backward, bad = case.backward, case.bad
    found = []
    for name in (backward.tape.graph.input, *(call.name for call in backward.tape.graph.calls)):
        call = backward.calls.get(name)
        if name in bad and (call is None or not any(source in bad for source in refs((call.args, call.kwargs)))):
            causes = [] if call is None else _name_bad_parameters(backward, call)
            because = f"; so are {', '.join(causes)}" if causes else ""
            size = backward.tape.values[name].numel()
            found.append(f"{describe_place(backward, name)}: {bad[name]} of {size} values are not finite{because}.")
    for b in case.balances:
        known = (b.name, *b.fused, *(name for part in (b.name, *b.fused) for name in backward.calls[part].inputs))
        if (
            bool(b.non_finite.any())
            and not any(name in bad for name in known)
            and not count_bad_parts(case.kept[b.name])
        ):
            count = int(b.non_finite.sum())
            found.append(f"{_describe_call(b)} makes {count} coefficients that are not finite from numbers that are.")
    return found


def _name_bad_parameters(backward: Backward, call: Call) -> list[str]:
    """Names of the parameters, buffers and constants of a call that are not finite, with counts."""
    if call.fx_op == "call_module":
        module = backward.tape.modules[call.target]
        named = {f"{call.target}.{n}": t for n, t in (*module.named_parameters(), *module.named_buffers())}
    else:
        constants = [name for name in refs((call.args, call.kwargs)) if name not in backward.tape.axes]
        named = {str(backward.calls[name].target): backward.tape.values[name] for name in constants}
    tensors = {name: t for name, t in named.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return [
        f"{_count_not_finite(t)} of {t.numel()} values of {name}" for name, t in tensors.items() if _count_not_finite(t)
    ]


def count_bad_values(backward: Backward, kept: Mapping[str, Any], name: str) -> int:
    """How many values of an activation are not finite; minus infinity without relevance is a masked score."""
    value, c = backward.tape.values[name], kept.get(name)
    if name not in backward.tape.axes or not isinstance(value, Tensor) or not _count_not_finite(value):
        return 0
    masked = value == -torch.inf
    if isinstance(c, Tensor):
        axis = backward.axis(name)
        masked = masked & (c == 0).unflatten(axis, (-1, value.shape[axis])).all(axis)
    return _count_not_finite(value.masked_fill(masked, 0.0))


def count_bad_parts(c: Any) -> int:
    """How many values of a coefficient, or of its parts, are not finite."""
    return sum(_count_not_finite(part) for part in (c.values() if isinstance(c, dict) else [c]))


def _count_not_finite(value: Tensor) -> int:
    return int(value.numel() - value.isfinite().sum())
