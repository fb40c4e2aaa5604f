"""The comparison of ``tw-seg next`` with chance: what is trained, what is not trained again, and its table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.next import measure
from tw_seg.data.budget import LabelBudget


@pytest.fixture
def commands(monkeypatch) -> list[tuple[str, str]]:
    """Commands that are run, in place of running them; a test's score grows with the masks, most for ``next``."""
    run: list[tuple[str, str]] = []

    def command(subcommand, files, run_dir, extra):
        run.append((subcommand, run_dir.name))
        run_dir.mkdir(parents=True, exist_ok=True)
        way, _, masks = run_dir.name.partition("-")
        if subcommand == "fit" and masks:
            names = tuple(f"im{i}" for i in range(int(masks)))
            LabelBudget(names, len(names), None, 0, "0").save(run_dir / "label_budget.json")
        score = 0.001 * int(masks or 0) * (2 if way == "next" else 1)
        return {"miou": score, "dice": 2 * score}

    def choose(way, before, used, count, seed):
        names = (*used, *(f"{way}{len(used) + i}" for i in range(count)))
        return LabelBudget(names, len(names), None, seed, "0")

    monkeypatch.setattr(measure, "command", command)
    monkeypatch.setattr(measure, "choose_masks", choose)
    return run


def test_each_model_is_trained_once_and_a_run_goes_on(tmp_path, commands):
    arguments = ["--run_dir", str(tmp_path), "--seeds", "2", "--masks", "20", "40", "80"]
    measure.main(arguments)
    fits = [name for subcommand, name in commands if subcommand == "fit"]
    assert fits == 2 * ["pretrain", "start-20", *(f"{way}-{masks}" for way in measure.WAYS for masks in (40, 80))]
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14 and {row["seed"] for row in rows} == {"0", "1"}
    assert {float(row["miou"]) for row in rows if (row["way"], row["masks"]) == ("next", "80")} == {0.16}
    text = (tmp_path / "results.md").read_text()
    assert "| 80 |  | 0.160 (2 seeds) | 0.080 (2 seeds) | 0.080 (2 seeds) | +0.080 ± 0.000 |" in text
    commands.clear()
    (tmp_path / "seed1" / "random-80" / "done").unlink()
    measure.main(arguments)
    assert commands == [("fit", "random-80"), ("test", "random-80")]


def test_the_table_has_the_mean_difference_of_seeds_that_both_ways_have():
    rows = [("next", 40, 0, 0.5, 0), ("next", 40, 1, 0.7, 0), ("next", 40, 2, 0.9, 0)]
    rows += [("random", 40, 0, 0.4, 0), ("random", 40, 1, 0.4, 0)]
    difference = np.array([0.1, 0.3])
    expected = f"{difference.mean():+.3f} ± {difference.std(ddof=1) / 2**0.5:.3f}"
    assert measure.summarise(rows).splitlines()[-1].endswith(f"| {expected} |")


@pytest.mark.slow
def test_the_ways_choose_as_many_new_masks_as_they_should(tmp_path: Path):
    sizes = ["--masks", "4", "8", "--pretrain_steps", "2", "--steps", "2", "--set=--data.size=32"]
    sizes += ["--set=--data.dataset_kwargs={size: 32}", "--set=--trainer.accelerator=cpu"]
    sizes += ["--set=--model.encoder_kwargs={channels: [8, 8, 16, 16], output_stride: 8, avg_down: false}"]
    lengths = {"train": {"length": 60}, "val": {"length": 16}, "test": {"length": 16}}
    sizes.append(f"--set=--data.split_kwargs={json.dumps(lengths)}")
    measure.main(["--run_dir", str(tmp_path), "--seeds", "1", *sizes])
    start = set(LabelBudget.load(tmp_path / "seed0" / "start-4" / "label_budget.json").names)
    for way in measure.WAYS:
        names = LabelBudget.load(tmp_path / "seed0" / f"{way}-8" / "label_budget.json").names
        assert len(set(names)) == 8 and start < set(names)
