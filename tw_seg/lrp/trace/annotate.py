"""What is noted on the calls of a trace: depth, the sign of the input, the BatchNorms that can be fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tw_seg.lrp.core.graph import Call


def annotate(calls: Sequence[Call]) -> tuple[Call, ...]:
    """Note on each call its depth, the sign of its input and the BatchNorms that are fused into it."""
    readers: dict[str, list[Call]] = {}
    for call in calls:
        for name in call.inputs:
            readers.setdefault(name, []).append(call)
    nonnegative = _find_nonnegative(calls)
    steps = sum(call.op.fuses_norms for call in calls) - 1
    annotated, seen = [], 0
    named = {call.name: call for call in calls}
    for call in calls:
        norm = norm_before = None
        if call.op.fuses_norms:
            norm, norm_before = _find_norm_after(call, readers), _find_norm_before(call, readers, named)
            seen += 1
        annotated.append(
            replace(
                call,
                norm=norm,
                norm_before=norm_before,
                depth=max(seen - 1, 0) / steps if steps > 0 else float(seen),  # a single one is the head
                nonnegative=bool(call.inputs) and call.inputs[0] in nonnegative,
            )
        )
    return tuple(annotated)


def _find_nonnegative(calls: Sequence[Call]) -> set[str]:
    """Names of the calls whose value is known to be >= 0."""
    found: set[str] = set()
    for call in calls:
        if call.inputs and call.op.sign(call, found):
            found.add(call.name)
    return found


def _find_norm_after(call: Call, readers: Mapping[str, Sequence[Call]]) -> str | None:
    after = readers.get(call.name, [])
    return after[0].name if len(after) == 1 and after[0].op.fusible else None


def _find_norm_before(call: Call, readers: Mapping[str, Sequence[Call]], named: Mapping[str, Call]) -> str | None:
    before = named.get(call.inputs[0])
    if before is None or not before.op.fusible or len(readers[before.name]) != 1:
        return None
    source = named.get(before.inputs[0])
    # The linear call before it comes first.
    taken = source is not None and source.op.fuses_norms and len(readers[source.name]) == 1
    return None if taken else before.name
