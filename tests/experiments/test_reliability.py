"""The comparison of reliability scores, on a tiny run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.reliability import compare
from tw_seg.explain.reliability.features import FEATURE_SETS, list_features
from tw_seg.explain.reliability.judge import Judged
from tw_seg.explain.reliability.measures import measure_detection
from tw_seg.explain.reliability.region_features import RegionOptions
from tw_seg.explain.reliability.score import fit_score


def make_judged(prefix: str, count: int = 40, seed: int = 0) -> Judged:
    rng = np.random.default_rng(seed)
    dice = torch.from_numpy(rng.random(count))
    names = list_features([*FEATURE_SETS["cheap"], "augmentation", "dropout"])
    features = {name: dice + torch.from_numpy(rng.standard_normal(count)) for name in names}
    dice[0] = torch.nan
    return Judged(tuple(f"{prefix}-{i}" for i in range(count)), features, dice)


def test_every_score_is_fitted_and_judged_alike() -> None:
    known, judged = make_judged("val"), make_judged("test", seed=1)
    scores = compare.fit_scores(known, 0.5, RegionOptions())
    assert list(scores) == [*compare.ALONE, "output features", "cheap features"]  # nothing of regions was measured
    lines = [dict(zip(compare.COLUMNS, line, strict=True)) for line in compare.judge(scores, judged, "blur")]
    assert [line["score"] for line in lines] == list(scores) and {line["images"] for line in lines} == {"39"}
    labelled = known.choose(~known.dice.isnan())
    alone = fit_score({"entropy": labelled.features["entropy"]}, labelled.dice, labelled.names, min_dice=0.5)
    kept = judged.choose(~judged.dice.isnan())
    expected = measure_detection(alone.rate(kept.features).numpy(), kept.dice.numpy(), 0.5).auroc
    assert lines[1]["AUROC"] == f"{expected:.3f}" and lines[1]["AUROC - entropy"] == "0.000"


def test_images_of_the_fit_are_not_judged() -> None:
    known = make_judged("val")
    with pytest.raises(ValueError, match="were used to fit the score"):
        compare.judge(compare.fit_scores(known, 0.5, RegionOptions()), known, "none")


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    judged, file = make_judged("val"), tmp_path / "new" / "val-none.npz"
    first = compare.remember(file, lambda: judged)
    again = compare.remember(file, lambda: pytest.fail("it measured again"))
    for found in (first, again):
        assert found.names == judged.names and torch.equal(found.dice.nan_to_num(), judged.dice.nan_to_num())
        assert found.features.keys() == judged.features.keys()
        assert all(torch.equal(found.features[name], values) for name, values in judged.features.items())


@pytest.mark.parametrize("name", compare.SHIFTS)
def test_shifts_change_images_and_nothing_else(name: str) -> None:
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    before, change = images.clone(), compare.SHIFTS[name]
    if change is not None:
        changed = change(images)
        assert changed.shape == images.shape and (changed - images).abs().mean() > 0.1
        assert torch.equal(change(images), changed) and torch.equal(images, before)


def test_the_table_has_a_line_for_each_score(tmp_path: Path) -> None:
    lines = compare.judge(compare.fit_scores(make_judged("val"), 0.5, RegionOptions()), make_judged("test"), "none")
    compare.write_table(tmp_path / "results.csv", lines)
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert len(rows) == len(lines) and rows[0]["score"] == "maximum softmax"
