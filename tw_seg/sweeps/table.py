"""The results of a sweep: one line for each trial, and means with paired differences between its rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tw_seg.files import write_text
from tw_seg.sweeps.definition import Sweep
from tw_seg.sweeps.study import Trial

UNIT = "data.split_seed"
REPEATS = (UNIT, "seed_everything")
"""Parameters that repeat a run. Intervals are over `UNIT`, the choice of the masks; the mean over other seeds of
the same choice is one value."""

AXES = ("data.budget", "data.budget_share", "trainer.max_steps", "trainer.max_epochs")
"""Parameters against which a score is drawn: the first that varies."""

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """A score of one row at one place of the axis.

    Attributes:
        count: Number of choices of masks that it is the mean of.
        mean: The mean.
        std: Standard deviation between them; NaN for one.
        difference: Mean of the paired differences to the reference row; NaN for that row itself.
        low: Lower end of its 95 % interval (Student's t); NaN for fewer than two pairs.
        high: Upper end.
        seconds: Mean duration of its trials.
    """

    count: int
    mean: float
    std: float
    difference: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Summary:
    """The cells of a sweep.

    Attributes:
        metric: What they hold.
        axis: Name of the parameter along which they are laid out; empty if none varies.
        places: Its values.
        rows: Names of the rows; the first is the reference.
        cells: By row and place.
    """

    metric: str
    axis: str
    places: tuple[Any, ...]
    rows: tuple[str, ...]
    cells: Mapping[tuple[str, Any], Cell]


def choose_metric(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """The metric of the tables: that of the test images where there is one, otherwise the one that is optimised."""
    tested = f"test/{sweep.metric.partition('/')[2]}"
    return tested if any(tested in trial.metrics for trial in trials) else sweep.metric


def summarise(sweep: Sweep, trials: Sequence[Trial], metric: str) -> Summary:
    """Means, spreads and paired differences of a metric over the trials that ended.

    Args:
        sweep: The sweep.
        trials: Its trials.
        metric: Name of a metric.
    """
    axis = next((name for name in AXES if name in sweep.varied), "")
    names = [name for name in sweep.varied if name not in (*REPEATS, axis)]
    exact = [p.name for p in sweep.parameters if _look_alike(p.values)]
    found: dict[tuple[str, Any], dict[Any, list[Trial]]] = {}
    for trial in trials:
        if metric in trial.metrics:
            key = (name_row(names, trial.values, exact), trial.values.get(axis))
            found.setdefault(key, {}).setdefault(trial.values.get(UNIT), []).append(trial)
    rows = tuple(dict.fromkeys(row for row, _ in found))
    order = next((p.values for p in sweep.parameters if p.name == axis), (None,))
    places = tuple(place for place in order if any(place == key[1] for key in found))
    means = {
        key: {unit: float(np.mean([t.metrics[metric] for t in repeats])) for unit, repeats in units.items()}
        for key, units in found.items()
    }
    cells = {
        key: _summarise_cell(
            units,
            means.get((rows[0], key[1]), {}) if key[0] != rows[0] else {},
            float(np.mean([t.seconds for repeats in found[key].values() for t in repeats])),
        )
        for key, units in means.items()
    }
    return Summary(metric, axis, places, rows, cells)


def name_row(names: Sequence[str], values: Mapping[str, Any], exact: Container[str] = ()) -> str:
    """Name of the row of a trial: the stem of a file that varies, and ``name=value`` for what else does.

    Args:
        names: The parameters that tell rows apart.
        values: Value of each parameter.
        exact: Those whose values are written as JSON, because two of them would look alike: 1 and "1".

    Examples:
        >>> name_row(["config", "model.lr"], {"config": "models/unet.yaml", "model.lr": 0.1})
        'unet, lr=0.1'
    """
    parts = []
    for name in names:
        value, label = values.get(name), name.rpartition(".")[2]
        if name in exact:
            parts.append(f"{label}={json.dumps(value, sort_keys=True)}")
        else:
            parts.append(_name_file(value) or f"{label}={value}")
    return ", ".join(parts) or "all"


def _name_file(value: Any) -> str:
    is_file = isinstance(value, str) and value.endswith((".yaml", ".yml"))
    return Path(value).stem if is_file else ""


def _look_alike(values: Sequence[Any]) -> bool:
    """Whether two different values have the same name in a row."""
    different = {json.dumps(value, sort_keys=True): value for value in values}
    return len({_name_file(value) or str(value) for value in different.values()}) < len(different)


def _summarise_cell(values: Mapping[Any, float], reference: Mapping[Any, float], seconds: float) -> Cell:
    numbers = np.array(list(values.values()))
    differences = np.array([values[unit] - reference[unit] for unit in values if unit in reference])
    mean = float(differences.mean()) if len(differences) else np.nan
    low = high = np.nan
    if len(differences) > 1:
        error = stats.sem(differences)
        low, high = (mean, mean) if error == 0 else stats.t.interval(_CONFIDENCE, len(differences) - 1, mean, error)
    std = float(numbers.std(ddof=1)) if len(numbers) > 1 else np.nan
    return Cell(len(numbers), float(numbers.mean()), std, mean, float(low), float(high), seconds)


def write_results(sweep: Sweep, trials: Sequence[Trial], folder: Path) -> None:
    """Write ``results.csv``, a line for each trial, and ``results.md``.

    Args:
        sweep: The sweep.
        trials: Its trials.
        folder: Where to write.
    """
    write_text(folder / "results.csv", format_csv(sweep, trials))
    write_text(folder / "results.md", format_markdown(sweep, trials))


def format_csv(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """A line for each trial: number, state, error, seconds, parameters, metrics."""
    parameters = [p.name for p in sweep.parameters]
    metrics = sorted({name for trial in trials for name in trial.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "seconds", *parameters, *metrics, "error"])
    for trial in trials:
        numbers = [trial.metrics.get(name, "") for name in metrics]
        values = [trial.values.get(name, "") for name in parameters]
        writer.writerow([trial.number, trial.state, round(trial.seconds, 1), *values, *numbers, trial.error])
    return text.getvalue()


def format_markdown(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """The tables of a sweep: of a grid the means and the paired differences, of a search its best trials."""
    states = {
        state: sum(trial.state == state for trial in trials) for state in ("complete", "failed", "running", "waiting")
    }
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    metric = choose_metric(sweep, trials)
    lines = [f"# {sweep.name}", "", f"{len(trials)} trials: {counts}. The metric is {metric}.", ""]
    complete = [trial for trial in trials if metric in trial.metrics]
    if not complete:
        lines += ["No trial has a score.", ""]
    elif sweep.method == "grid":
        lines += _format_summary(summarise(sweep, complete, metric))
    else:
        lines += _format_best(sweep, complete, metric)
    lines += [
        f"Trial {t.number} failed: {t.error.splitlines()[-1] if t.error else 'no message'}"
        for t in trials
        if t.state == "failed"
    ]
    return "\n".join(lines).rstrip() + "\n"


def _format_summary(summary: Summary) -> list[str]:
    heads = [
        f"{summary.axis.rpartition('.')[2]} {_format_place(place)}" if summary.axis else "" for place in summary.places
    ]
    places = [place if summary.axis else None for place in summary.places]
    counts = sorted({cell.count for cell in summary.cells.values()})
    choices = f"{counts[0]} to {counts[-1]} choices" if len(counts) > 1 else f"{counts[0]} choice(s)"
    lines = [
        f"Mean and standard deviation of {choices} of the masks.",
        "",
        *_format_table(
            ["", *heads], [[row, *(_format_mean(summary.cells.get((row, p))) for p in places)] for row in summary.rows]
        ),
        "",
    ]
    if len(summary.rows) > 1:
        body = [[row, *(_format_difference(summary.cells.get((row, p))) for p in places)] for row in summary.rows[1:]]
        lines += [
            f"Paired difference to {summary.rows[0]}, with its 95 % interval.",
            "",
            *_format_table(["", *heads], body),
            "",
        ]
    body = [[row, *(_format_seconds(summary.cells.get((row, p))) for p in places)] for row in summary.rows]
    return [*lines, "Mean duration of a trial.", "", *_format_table(["", *heads], body), ""]


def _format_best(sweep: Sweep, trials: Sequence[Trial], metric: str) -> list[str]:
    best = sorted(trials, key=lambda trial: trial.metrics[sweep.metric], reverse=sweep.maximise)[:10]
    names = sweep.varied
    columns = list(dict.fromkeys((sweep.metric, metric)))
    body = [
        [
            str(t.number),
            *(f"{t.metrics[name]:.4g}" for name in columns),
            *(_format_value(t.values[name]) for name in names),
        ]
        for t in best
    ]
    return ["The best trials.", "", *_format_table(["trial", *columns, *names], body), ""]


def _format_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = (head, ["---"] * len(head), *body)
    return ["| " + " | ".join(map(_escape, line)) + " |" for line in lines]


def _escape(cell: str) -> str:
    return " ".join(cell.splitlines()).replace("|", "\\|")


def _format_place(place: Any) -> str:
    return "all" if place is None else str(place)


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _format_mean(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell.mean:.3f}" if cell.count == 1 else f"{cell.mean:.3f} ± {cell.std:.3f}"


def _format_difference(cell: Cell | None) -> str:
    if cell is None or np.isnan(cell.difference):
        return ""
    interval = "" if np.isnan(cell.low) else f" [{cell.low:+.3f}, {cell.high:+.3f}]"
    return f"{cell.difference:+.3f}{interval}"


def _format_seconds(cell: Cell | None) -> str:
    return "" if cell is None else f"{cell.seconds:.0f} s"
