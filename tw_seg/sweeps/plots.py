"""Pictures of a sweep's results: score against budget, score of each class, score against time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tw_seg.files import write_whole
from tw_seg.fonts import show_characters
from tw_seg.sweeps.definition import Sweep
from tw_seg.sweeps.study import Trial
from tw_seg.sweeps.table import Summary, choose_metric, summarise

_COLUMNS = 4
_MOST_CLASSES = 24


def draw_results(sweep: Sweep, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """Draw the results of a grid.

    Args:
        sweep: The sweep.
        trials: Its trials.
        folder: Where ``score.png``, ``classes.png`` and ``time.png`` are written.

    Returns:
        What was written: nothing for a search, and no classes where there is no score of single ones.
    """
    metric = choose_metric(sweep, trials)
    ended = [trial for trial in trials if metric in trial.metrics]
    if sweep.method != "grid" or not ended:
        return []
    summary = summarise(sweep, ended, metric)
    with show_characters([*summary.rows, *(name for trial in ended for name in trial.metrics)]):
        figures = {"score.png": _draw_score(summary), "time.png": _draw_time(summary)}
        if classes := _draw_classes(sweep, ended, metric):
            figures["classes.png"] = classes
    for name, figure in figures.items():
        write_whole(folder / name, partial(figure.savefig, format="png", dpi=120))
    return [folder / name for name in figures]


def _draw_score(summary: Summary) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    _draw_lines(axes, summary)
    axes.set_ylabel(summary.metric)
    axes.set_xlabel(_name_axis(summary))
    axes.legend(fontsize="small", title="mean, ± standard deviation", title_fontsize="small")
    return figure


def _draw_lines(axes: Axes, summary: Summary) -> None:
    """A line with a band for each row; points beside each other where nothing lies along the axis."""
    positions = np.arange(len(summary.places))
    for row in summary.rows:
        cells = [summary.cells.get((row, place)) for place in summary.places]
        mean = np.array([np.nan if cell is None else cell.mean for cell in cells])
        std = np.nan_to_num(np.array([np.nan if cell is None else cell.std for cell in cells]))
        (line,) = axes.plot(positions, mean, marker="o", markersize=4, label=row)
        axes.fill_between(positions, mean - std, mean + std, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xticks(positions, [_name_place(place) for place in summary.places] if summary.axis else [""])
    axes.grid(alpha=0.3)


def _draw_classes(sweep: Sweep, trials: Sequence[Trial], metric: str) -> Figure | None:
    prefix = f"{metric.partition('/')[0]}/iou/"
    names = sorted({name for trial in trials for name in trial.metrics if name.startswith(prefix)})
    if not names:
        return None
    shown = names[:_MOST_CLASSES]
    lines = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(3 * _COLUMNS, 2.2 * lines + 0.8), layout="constrained")
    grid = list(figure.subplots(lines, _COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
    for axes, name in zip(grid, shown, strict=False):
        _draw_lines(axes, summarise(sweep, trials, name))
        axes.set_title(name.removeprefix(prefix), fontsize="small")
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    more = f", the first {len(shown)} of {len(names)}" if len(names) > len(shown) else ""
    figure.suptitle(f"{prefix.rstrip('/')} of each class{more}", fontsize="medium")
    return figure


def _draw_time(summary: Summary) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in summary.rows:
        cells = {place: cell for place in summary.places if (cell := summary.cells.get((row, place)))}
        axes.plot([c.seconds for c in cells.values()], [c.mean for c in cells.values()], marker="o", label=row)
        if summary.axis:
            for place, cell in cells.items():
                axes.annotate(
                    _name_place(place),
                    (cell.seconds, cell.mean),
                    fontsize="x-small",
                    xytext=(3, 3),
                    textcoords="offset points",
                )
    axes.set_xlabel("mean duration of a trial in seconds")
    axes.set_ylabel(summary.metric)
    axes.grid(alpha=0.3)
    axes.legend(
        fontsize="small", title=f"points: {_name_axis(summary)}" if summary.axis else None, title_fontsize="small"
    )
    return figure


def _name_axis(summary: Summary) -> str:
    return {"data.budget": "number of masks", "data.budget_share": "share of the masks"}.get(summary.axis, summary.axis)


def _name_place(place: Any) -> str:
    return "all" if place is None else str(place)
