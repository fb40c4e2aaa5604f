"""A report on where relevance goes in a model: numbers per call, totals per class, and what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tw_seg.lrp.conservation.balance import CallBalance, Completeness, Measure
from tw_seg.lrp.conservation.findings import Case


@dataclass(frozen=True)
class Row:
    """One call, or one with the BatchNorms that its rule sees as part of it. Means are over images and classes.

    Attributes:
        name: Name of the call.
        path: Path of the module that it happens in, ``""`` for the classifier itself.
        kind: Kind of the call, such as ``"conv+batch_norm"``.
        fused: Names of the BatchNorm calls in it.
        rule: Its rule: that of the composite, or how relevance passes the kind: ``"pass"``, ``"winner"``,
            ``"half each"`` (a product of two activations), ``"to the signal"`` (the other factor is a gate),
            ``"first order"`` (the constant of the expansion absorbs the rest), ``"std constant"``.
        relevance_out: Mean relevance at its output, in units of the logit.
        relevance_in: Mean relevance that it hands to its inputs.
        bias: Relevance that biases and other constants absorb, as a share of the largest term of the balance.
        missing: The most that is not accounted for, relative to the largest term.
        zeros: Share of the coefficients it hands on that are exactly 0.
        growth: Absolute relevance at its inputs over that at its output.
        absolute: Absolute relevance at its output over that at the logits.
        non_finite: NaN and infinite values of its output and of the coefficients it hands on.
    """

    name: str
    path: str
    kind: str
    fused: tuple[str, ...]
    rule: str
    relevance_out: float
    relevance_in: float
    bias: float
    missing: float
    zeros: float
    growth: float
    absolute: float
    non_finite: int


@dataclass(frozen=True)
class ClassTotals:
    """Where the logit of one class went, means over the images: ``seed`` is the sum of the five that follow.

    Attributes:
        read_out: Where the heatmap is read.
        class_index: Index of the class.
        logit: The logit.
        seed: Relevance at the logits: the logit, but for contrastive seeds.
        heatmap: Sum of the heatmap.
        bias: What biases and other constants absorb.
        stabilizer: What stabilisers absorb.
        elsewhere: What passes the read-out by.
        missing: The most of an image that is not accounted for, relative to the largest term.
        absolute: Absolute relevance at the read-out over that at the logits: at least about 1, large where
            relevance of both signs cancels.
    """

    read_out: str
    class_index: int
    logit: float
    seed: float
    heatmap: float
    bias: float
    stabilizer: float
    elsewhere: float
    missing: float
    absolute: float


@dataclass(frozen=True)
class Report:
    """What `tw_seg.lrp.conservation.diagnose.report` found.

    Attributes:
        classifier: Class of the classifier.
        images: Shape of the images.
        dtype: Type of the logits.
        classes: Classes that were decoded.
        rows: The calls on the way from the logits to the deepest read-out.
        totals: For each read-out and class, where the logit went.
        notes: Why a check was left out. They are no violations.
        violations: One sentence for each thing that is wrong; empty if all is well.
    """

    classifier: str
    images: tuple[int, ...]
    dtype: str
    classes: tuple[int, ...]
    rows: tuple[Row, ...]
    totals: tuple[ClassTotals, ...]
    notes: tuple[str, ...]
    violations: tuple[str, ...]

    @property
    def rules(self) -> Mapping[str, Mapping[str, int]]:
        """Kind of call -> rule -> number of such calls."""
        counts: dict[str, dict[str, int]] = {}
        for row in self.rows:
            of_kind = counts.setdefault(row.kind, {})
            of_kind[row.rule] = of_kind.get(row.rule, 0) + 1
        return counts

    def table(self) -> str:
        """The report for people, lines of at most 150 characters but for the sentences at its end."""
        shape = " x ".join(map(str, self.images))
        shown = ", ".join(map(str, self.classes[:10])) + (", ..." if len(self.classes) > 10 else "")
        lines = [f"{self.classifier}: images {shape}, {self.dtype}, classes {shown}", ""]
        lines += _columns(_ROW_HEADS, [_row_cells(row) for row in self.rows], left=3)
        lines += ["", "Rules"]
        for kind, rules in sorted(self.rules.items()):
            lines += [f"  {count:>4} x {kind}: {rule}" for rule, count in rules.items()]
        lines += ["", "Completeness: logit = heatmap + bias + stabilizer + elsewhere (means over the images)"]
        lines += _columns(_TOTAL_HEADS, [_total_cells(total) for total in self.totals], left=1)
        lines += [""] * bool(self.notes) + [f"Note: {note}" for note in self.notes]
        count = len(self.violations)
        lines += ["", "No violations." if not count else f"{count} violation{'s' if count > 1 else ''}:"]
        return "\n".join(line.rstrip() for line in [*lines, *(f"  - {text}" for text in self.violations)])

    def to_json(self) -> str:
        """The report as strict JSON; NaN and infinity become ``null``."""
        return json.dumps(_finite({**asdict(self), "rules": self.rules}), indent=2, allow_nan=False)


def summarize_call(case: Case, b: CallBalance) -> Row:
    """The row of one call."""
    scale = torch.stack([n.abs() for n in b.terms]).amax(0).sum()
    return Row(
        name=b.name,
        path=b.path,
        kind=b.kind,
        fused=b.fused,
        rule=b.rule,
        relevance_out=b.relevance_out.mean().item(),
        relevance_in=b.relevance_in.mean().item(),
        bias=_divide(b.bias.abs().sum(), scale),
        missing=_compare_missing(b.missing, *b.terms),
        zeros=b.zeros_in.mean().item(),
        growth=_divide(b.absolute_in.sum(), b.absolute_out.sum()),
        absolute=_divide(b.absolute_out.sum(), case.start.sum()),
        non_finite=int(b.non_finite.sum()) + sum(case.bad.get(name, 0) for name in (b.name, *b.fused)),
    )


def summarize_classes(case: Case, place: str, found: Completeness, at_place: Measure) -> list[ClassTotals]:
    """The totals of each class at one read-out."""
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
            missing=_compare_missing(found.missing[:, i], *(n[:, i] for n in found.terms)),
            absolute=_divide(at_place.absolute[:, i].sum(), case.start[:, i].sum()),
        )
        for i, k in enumerate(case.classes)
    ]


def _compare_missing(missing: Tensor, *terms: Tensor) -> float:
    """The most that is missing, relative to the largest term."""
    scale = torch.stack([t.abs() for t in terms]).amax().clamp(min=torch.finfo(torch.float64).tiny)
    return float(missing.abs().amax() / scale)


def _divide(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if part != 0 or whole != 0 else 0.0


_ROW_HEADS = ("call", "kind", "rule", "out", "in", "bias", "missing", "zero", "growth", "|R|/|z|", "bad")
_TOTAL_HEADS = (
    "read-out",
    "class",
    "logit",
    "seed",
    "heatmap",
    "bias",
    "stabilizer",
    "elsewhere",
    "missing",
    "|R|/|z|",
)
_WIDTHS = {"call": 32, "kind": 17, "rule": 26, "read-out": 24}
"""Longer words are cut."""


def _row_cells(row: Row) -> list[str]:
    return [
        _cut(row.path or "(root)", "call", tail=True),
        _cut(row.kind, "kind"),
        _cut(row.rule, "rule"),
        f"{row.relevance_out:.3g}",
        f"{row.relevance_in:.3g}",
        f"{row.bias:.1%}",
        f"{row.missing:.0e}",
        f"{row.zeros:.1%}",
        f"{row.growth:.2g}",
        f"{row.absolute:.2g}",
        str(row.non_finite or ""),
    ]


def _total_cells(total: ClassTotals) -> list[str]:
    numbers = (total.logit, total.seed, total.heatmap, total.bias, total.stabilizer, total.elsewhere)
    return [
        _cut(total.read_out, "read-out", tail=True),
        str(total.class_index),
        *(f"{number:.4g}" for number in numbers),
        f"{total.missing:.0e}",
        f"{total.absolute:.3g}",
    ]


def _cut(text: str, column: str, *, tail: bool = False) -> str:
    """A text no wider than its column; of a path the end tells more."""
    width = _WIDTHS[column]
    if len(text) <= width:
        return text
    return ".." + text[2 - width :] if tail else text[: width - 2] + ".."


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Aligned lines: the first ``left`` columns to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in (heads, *rows)
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _finite(value: Any) -> Any:
    """Nested data with ``None`` for every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
