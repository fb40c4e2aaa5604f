from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from tw_seg.sweeps.definition import Parameter, Sweep
from tw_seg.sweeps.study import Trial
from tw_seg.sweeps.table import choose_metric, format_csv, format_markdown, name_row, summarise

MODELS, BUDGETS, SPLITS, SEEDS = ("m/unet.yaml", "m/heatmap.yaml"), (5, None), (0, 1, 2), (0, 1)
SWEEP = Sweep(
    "budgets",
    "grid",
    "val/miou",
    True,
    (
        Parameter("config", MODELS),
        Parameter("data.budget", BUDGETS),
        Parameter("data.split_seed", SPLITS),
        Parameter("seed_everything", SEEDS),
        Parameter("model.lr", (0.1,)),
    ),
    ("train", "${args}"),
    "",
    None,
)


@pytest.fixture
def scores() -> np.ndarray:
    """By model, budget, split seed and seed."""
    return np.random.default_rng(0).random((2, 2, 3, 2))


@pytest.fixture
def trials(scores) -> list[Trial]:
    return [
        Trial(
            n, "complete", point, {"val/miou": 0.0, "test/miou": score, "test/iou/cat": score / 2}, "", 10.0 * (n % 2)
        )
        for n, (point, score) in enumerate(zip(SWEEP.list_points(), scores.flat, strict=True))
    ]


def test_means_and_paired_intervals_are_those_of_scipy(scores, trials):
    summary = summarise(SWEEP, trials, "test/miou")
    assert (summary.axis, summary.places, summary.rows) == ("data.budget", BUDGETS, ("unet", "heatmap"))
    units = scores.mean(-1)  # seeds of one choice of masks are averaged
    for row, name in enumerate(summary.rows):
        for column, place in enumerate(BUDGETS):
            cell = summary.cells[name, place]
            assert (cell.count, cell.seconds) == (3, 5.0)
            assert cell.mean == pytest.approx(units[row, column].mean())
            assert cell.std == pytest.approx(units[row, column].std(ddof=1))
            if row == 0:
                assert np.isnan([cell.difference, cell.low, cell.high]).all()
                continue
            paired = stats.ttest_rel(units[1, column], units[0, column])
            assert (cell.low, cell.high) == pytest.approx(tuple(paired.confidence_interval(0.95)))
            assert cell.difference == pytest.approx((units[1] - units[0])[column].mean())


def test_pairs_are_the_same_choices_of_masks(trials, scores):
    """A trial that is missing takes its partner out of the difference, not out of the mean."""
    left = [t for t in trials if not (t.values["config"] == MODELS[0] and t.values["data.split_seed"] == 1)]
    cell = summarise(SWEEP, left, "test/miou").cells["heatmap", 5]
    units = scores.mean(-1)
    assert cell.count == 3 and cell.mean == pytest.approx(units[1, 0].mean())
    assert cell.difference == pytest.approx((units[1, 0] - units[0, 0])[[0, 2]].mean())


def test_a_failed_trial_is_in_the_table_with_its_error(trials):
    failed = Trial(24, "failed", {"config": "a,b"}, {}, "exit status 1: no\nluck", 1.0)
    rows = list(csv.DictReader(io.StringIO(format_csv(SWEEP, [*trials, failed]))))
    assert len(rows) == 25
    assert (rows[-1]["state"], rows[-1]["config"], rows[-1]["error"]) == ("failed", "a,b", "exit status 1: no\nluck")
    assert float(rows[3]["test/miou"]) == trials[3].metrics["test/miou"]
    text = format_markdown(SWEEP, [*trials, failed])
    assert "25 trials: 24 complete, 1 failed. The metric is test/miou." in text
    assert "Trial 24 failed: luck" in text
    mean = summarise(SWEEP, trials, "test/miou").cells["unet", None]
    assert f"{mean.mean:.3f} ± {mean.std:.3f}" in text and "| budget 5 | budget all |" in text


def test_a_search_lists_its_best_trials():
    sweep = Sweep("s", "bayes", "loss", False, (Parameter("lr", low=0.0, high=1.0),), ("x",), "", 3)
    trials = [Trial(n, "complete", {"lr": n / 10}, {"loss": 3.0 - n}, "", 1.0) for n in range(3)]
    lines = [line for line in format_markdown(sweep, trials).splitlines() if line.startswith("|")]
    assert lines == [
        "| trial | loss | lr |",
        "| --- | --- | --- |",
        "| 2 | 1 | 0.2 |",
        "| 1 | 2 | 0.1 |",
        "| 0 | 3 | 0 |",
    ]


def test_tables_of_nothing_and_of_one():
    for state in ("waiting", "failed"):
        assert "No trial has a score." in format_markdown(SWEEP, [Trial(0, state, {}, {}, "", 0.0)])
    one = [Trial(0, "complete", SWEEP.list_points()[0], {"val/miou": 0.5}, "", 1.0)]
    assert choose_metric(SWEEP, one) == "val/miou"
    assert "| unet | 0.500 |" in format_markdown(SWEEP, one)


def make_table(*values) -> list[str]:
    sweep = Sweep("s", "grid", "loss", False, (Parameter("m.x", values), Parameter("y", (1, 2))), ("x",), "", None)
    trials = [Trial(n, "complete", point, {"loss": float(n)}, "", 1.0) for n, point in enumerate(sweep.list_points())]
    return format_markdown(sweep, trials).splitlines()


def test_values_that_look_alike_have_rows_of_their_own():
    assert "| x=1, y=1 | 0.000 |" in make_table(1, 1.0, True)
    for values in ((1, "1"), (1.0, "1.0"), (None, "None")):
        lines = make_table(*values)
        for n, value in enumerate(values):
            assert f"| x={json.dumps(value)}, y=1 | {2 * n:.3f} |" in lines
    assert '| x="b/unet.yaml", y=2 | 3.000 |' in make_table("a/unet.yaml", "b/unet.yaml")


def test_a_cell_holds_bars_and_line_ends_without_breaking_its_table():
    assert r"| x=a\|b c, y=1 | 0.000 |" in make_table("a|b\nc", "d")


def test_rows_are_named_by_what_varies():
    assert name_row([], {}) == "all"
    assert name_row(["model.lr"], {"model.lr": 0.1}) == "lr=0.1"
