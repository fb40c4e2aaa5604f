"""Pictures of a result: ratios of the headline as bars, scaling as log-log curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from experiments.benchmarks.summary import AXES, Curve, Record, Spread, curves, spread, turn_values

GIB = 2**30
OURS, OTHERS = "#1b6ca8", "#9aa5b1"
MARKERS = "osD^vP*X"


def bars(record: Record, title: str, path: Path) -> None:
    """Seconds of a run and peak memory above the model, for each contender with a result."""
    names = [name for name, found in record["contenders"].items() if found["turns"]]
    if not names:
        return
    figure = _figure(10, 1.4 + 0.42 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, record, names, "seconds", "seconds per run", 1.0)
    _bars(right, record, names, "peak_bytes", "peak memory above the model, GiB", GIB)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def _bars(axes: Axes, record: Record, names: Sequence[str], key: str, label: str, unit: float) -> None:
    found = [_spread(record, name, key) for name in names]
    medians = [value.median / unit for value in found]
    errors = [[m - v.low / unit for m, v in zip(medians, found, strict=True)]]
    errors.append([v.high / unit - m for m, v in zip(medians, found, strict=True)])
    colours = [OURS if name.startswith("ours") else OTHERS for name in names]
    axes.barh(range(len(names)), medians, xerr=errors, color=colours, ecolor="#444444", capsize=2)
    most = max(value.high / unit for value in found)
    for row, (median, value) in enumerate(zip(medians, found, strict=True)):
        axes.text(value.high / unit + 0.02 * most, row, f"{median:.3g}", va="center", fontsize=8)
    axes.set_xlim(0, 1.15 * most)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _spread(record: Record, name: str, key: str) -> Spread:
    found = spread(list(turn_values(record, name, key).values()))
    assert found is not None
    return found


def scaling(records: Sequence[Record], axis: str, title: str, path: Path) -> None:
    """Seconds and memory along one axis, logarithmic, with the fitted exponents in the legend."""
    figure = _figure(10, 3.9)
    left, right = figure.subplots(1, 2)
    _curves(left, curves(records, axis, "seconds"), AXES[axis], "seconds per training step", 1.0)
    _curves(right, curves(records, axis, "peak_bytes"), AXES[axis], "peak memory above the model, GiB", GIB)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def _curves(axes: Axes, found: Sequence[Curve], label: str, quantity: str, unit: float) -> None:
    places: set[float] = set()
    for curve, marker in zip(found, MARKERS, strict=False):
        if not curve.x:
            continue
        places |= set(curve.x)
        legend = curve.name if curve.exponent is None else f"{curve.name}: exponent {curve.exponent:.2f}"
        axes.plot(curve.x, [y / unit for y in curve.y], marker=marker, markersize=5, linewidth=1.4, label=legend)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted(places), [f"{x:g}" for x in sorted(places)])
    axes.xaxis.set_minor_locator(NullLocator())
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high / low < 10 else NullFormatter())
    axes.set_xlabel(label)
    axes.set_ylabel(quantity)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
