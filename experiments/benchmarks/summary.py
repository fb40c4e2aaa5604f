"""Numbers made of the raw turns: medians, ratios of paired turns, exponents. Pure functions of what JSON holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Record = Mapping[str, Any]


class Spread(NamedTuple):
    """Median, smallest and largest of some values."""

    median: float
    low: float
    high: float
    turns: int


def spread(values: Sequence[float]) -> Spread | None:
    """Of no values there is none."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


def turn_values(record: Record, name: str, key: str) -> dict[int, float]:
    """Number of the turn -> ``seconds`` or ``peak_bytes`` of a contender; empty for one without result."""
    contender = record["contenders"].get(name, {"turns": []})
    return {turn["turn"]: turn[key] for turn in contender["turns"]}


def ratio(record: Record, name: str, other: str, *, key: str = "seconds", factor: float = 1.0) -> Spread | None:
    """``name / (factor * other)`` within each turn that both took: what disturbs a turn disturbs both."""
    a, b = turn_values(record, name, key), turn_values(record, other, key)
    return spread([a[turn] / (factor * b[turn]) for turn in sorted(a.keys() & b.keys()) if b[turn] > 0])


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """``p`` of ``y = c * x**p``, by least squares on the logarithms; ``None`` below two different points."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 and b > 0]
    if len({a for a, _ in points}) < 2:
        return None
    logs = np.log(np.asarray(points, dtype=np.float64))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


AXES: dict[str, str] = {
    "classes": "classes K",
    "batch": "images N",
    "pixels": "pixels H*W",
    "share": "labelled share",
}
"""What a scaling sweep varies, and how plots call it."""


def axis_value(record: Record, axis: str) -> float:
    """Where a case stands on an axis."""
    case = record["case"]
    values = {
        "classes": case["classes"],
        "batch": case["batch"],
        "pixels": case["size"] ** 2,
        "share": case["labelled"] / case["batch"],
    }
    return float(values[axis])


class Curve(NamedTuple):
    """A contender along an axis: median seconds or peak bytes, and the fitted exponent."""

    name: str
    x: list[float]
    y: list[float]
    exponent: float | None


def curves(records: Sequence[Record], axis: str, key: str) -> list[Curve]:
    """The curves of one sweep, over the cases that have a result."""
    along = sorted((r for r in records if r.get("axis") == axis), key=lambda r: axis_value(r, axis))
    names = list(dict.fromkeys(name for record in along for name in record["contenders"]))
    found = []
    for name in names:
        values = [(axis_value(r, axis), spread(list(turn_values(r, name, key).values()))) for r in along]
        points = [(x, value.median) for x, value in values if value is not None]
        x, y = [p[0] for p in points], [p[1] for p in points]
        found.append(Curve(name, x, y, exponent(x, y)))
    return found
