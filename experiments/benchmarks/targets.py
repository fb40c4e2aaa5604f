"""The targets of the work on speed, and what a run measured of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks.summary import Record, Spread, ratio, spread, turn_values

HEADLINE, ALL_LABELLED, ALL_LABELLED_FROZEN = "headline", "all labelled", "all labelled, BatchNorm frozen"
INFERENCE, FEW, MANY = "inference", "flat: K = 11", "flat: K = 81"


@dataclass(frozen=True)
class Target:
    """A bound on a ratio.

    Attributes:
        what: For tables.
        measure: The ratio, from the cases by name; ``None`` where its contenders have no result.
        bounds: The bound by device.
        at_least: Whether larger is better.
    """

    what: str
    measure: Callable[[Mapping[str, Record]], Spread | None]
    bounds: Mapping[str, float]
    at_least: bool

    def met(self, value: float, device: str) -> bool:
        """Whether a measured value keeps the bound."""
        return value >= self.bounds[device] if self.at_least else value <= self.bounds[device]


def _within(case: str, name: str, other: str, **options: Any) -> Callable[[Mapping[str, Record]], Spread | None]:
    def measure(cases: Mapping[str, Record]) -> Spread | None:
        return ratio(cases[case], name, other, **options) if case in cases else None

    return measure


def _of_roofline(cases: Mapping[str, Record]) -> Spread | None:
    record = cases.get(HEADLINE)
    return None if record is None else ratio(record, "ours", "classifier", factor=record["roofline"])


def _flat(name: str) -> Callable[[Mapping[str, Record]], Spread | None]:
    def measure(cases: Mapping[str, Record]) -> Spread | None:
        return _flatness(cases, name)

    return measure


def _flatness(cases: Mapping[str, Record], name: str) -> Spread | None:
    """Medians of two runs: they share no turn."""
    peaks = [
        spread(list(turn_values(cases.get(case, {"contenders": {}}), name, "peak_bytes").values()))
        for case in (FEW, MANY)
    ]
    few, many = peaks
    if few is None or many is None:
        return None
    return Spread(many.median / few.median, many.low / few.high, many.high / few.low, min(few.turns, many.turns))


def _bounds(cpu: float, cuda: float) -> dict[str, float]:
    return {"cpu": cpu, "cuda": cuda}


PUBLISHED, DOUBLE, BUDGET = "published, per class", "double backpropagation", "ours, memory budget"
MEMORY = {"key": "peak_bytes"}

TARGETS: tuple[Target, ...] = (
    Target(
        "training step: published code (per class) / ours, time, half labelled",
        _within(HEADLINE, PUBLISHED, "ours"),
        _bounds(8, 20),
        at_least=True,
    ),
    Target(
        "training step: ours / published code (per class), memory above the model",
        _within(HEADLINE, "ours", PUBLISHED, **MEMORY),
        _bounds(1 / 3, 1 / 4),
        at_least=False,
    ),
    Target(
        "the same within a memory budget: time",
        _within(HEADLINE, PUBLISHED, BUDGET),
        _bounds(8, 20),
        at_least=True,
    ),
    Target(
        "the same within a memory budget: memory",
        _within(HEADLINE, BUDGET, PUBLISHED, **MEMORY),
        _bounds(1 / 3, 1 / 4),
        at_least=False,
    ),
    Target(
        "training step: double backpropagation / ours, time, all labelled",
        _within(ALL_LABELLED, DOUBLE, "ours"),
        _bounds(1.5, 2),
        at_least=True,
    ),
    Target(
        "the same with BatchNorm frozen",
        _within(ALL_LABELLED_FROZEN, DOUBLE, "ours"),
        _bounds(1.5, 2),
        at_least=True,
    ),
    Target(
        "training step: ours / double backpropagation, memory above the model, all labelled",
        _within(ALL_LABELLED, "ours", DOUBLE, **MEMORY),
        _bounds(1 / 2, 1 / 2),
        at_least=False,
    ),
    Target(
        "the same within a memory budget: double backpropagation / ours, time",
        _within(ALL_LABELLED, DOUBLE, BUDGET),
        _bounds(1.5, 2),
        at_least=True,
    ),
    Target(
        "the same within a memory budget: ours / double backpropagation, memory",
        _within(ALL_LABELLED, BUDGET, DOUBLE, **MEMORY),
        _bounds(1 / 2, 1 / 2),
        at_least=False,
    ),
    Target(
        "training step: ours / ((1 + K * labelled share) x classifier step), half labelled",
        _of_roofline,
        _bounds(1.15, 1.3),
        at_least=False,
    ),
    Target(
        "inference, all classes: zennit per class / ours",
        _within(INFERENCE, "zennit, per class", "ours"),
        _bounds(3, 5),
        at_least=True,
    ),
    Target(
        "gated inference (1.5 classes and the background): ours / classifier's forward pass",
        _within(INFERENCE, "ours, gated", "classifier"),
        _bounds(4, 4),
        at_least=False,
    ),
    Target(
        "memory above the model, recompute: K = 81 / K = 11",
        _flat("ours, recompute"),
        _bounds(1.1, 1.1),
        at_least=False,
    ),
    Target(
        "memory above the model, two-phase: K = 81 / K = 11",
        _flat("ours, two-phase"),
        _bounds(1.1, 1.1),
        at_least=False,
    ),
)


def measured(records: Sequence[Record]) -> list[tuple[Target, Spread, str]]:
    """The targets of which a run has measurements: target, ratio, device."""
    cases = {record["case"]["name"]: record for record in records}
    device = next((record["case"]["device"] for record in records), "cpu")
    found = ((target, target.measure(cases)) for target in TARGETS)
    return [(target, value, device) for target, value in found if value is not None]
