from __future__ import annotations

import numpy as np
from PIL import Image

from tests.sweeps.test_table import SWEEP
from tw_seg.sweeps.definition import Parameter, Sweep
from tw_seg.sweeps.plots import draw_results
from tw_seg.sweeps.study import Trial


def make_trials(score: float, names: tuple[str, ...] = ("cat", "dog")) -> list[Trial]:
    metrics = {"val/miou": score, **{f"val/iou/{name}": score for name in names}}
    return [
        Trial(n, "complete", point, {k: v * n / 24 for k, v in metrics.items()}, "", 1.0 + n)
        for n, point in enumerate(SWEEP.list_points())
    ]


def test_a_grid_has_three_pictures_that_show_its_scores(tmp_path):
    written = draw_results(SWEEP, make_trials(0.5), tmp_path)
    assert {path.name for path in written} == {"score.png", "time.png", "classes.png"}
    before = {path: np.asarray(Image.open(path).convert("RGB")) for path in written}
    assert all(len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20 for pixels in before.values())
    draw_results(SWEEP, make_trials(0.9), tmp_path)
    for path, pixels in before.items():
        assert not np.array_equal(np.asarray(Image.open(path).convert("RGB")), pixels)


def test_the_axis_may_be_missing(tmp_path):
    sweep = Sweep("s", "grid", "loss", False, (Parameter("lr", (0.1, 0.2)),), ("x",), "", None)
    trials = [Trial(n, "complete", point, {"loss": float(n)}, "", 1.0) for n, point in enumerate(sweep.list_points())]
    assert {path.name for path in draw_results(sweep, trials, tmp_path)} == {"score.png", "time.png"}


def test_a_search_and_a_sweep_without_results_have_none(tmp_path):
    search = Sweep("s", "random", "loss", False, (Parameter("lr", (0.1,)),), ("x",), "", 1)
    assert draw_results(search, [Trial(0, "complete", {"lr": 0.1}, {"loss": 1.0}, "", 1.0)], tmp_path) == []
    assert draw_results(SWEEP, [], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_many_classes_fit(tmp_path):
    names = tuple(f"class-{number:02}" for number in range(40))
    assert tmp_path / "classes.png" in draw_results(SWEEP, make_trials(0.5, names), tmp_path)
