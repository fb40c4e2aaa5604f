"""The main job at a tiny scale: every stage runs, and everything that the README promises is in the run directory."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image

from experiments.main_job import Row, main, overlay, write_table

pytest.importorskip("segmentation_models_pytorch")

TINY = {
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "model.warmup_steps": 0,
    "data.eval_batch_size": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("mask_classes", [[], ["0", "1", "2", "3", "4", "5", "6", "7"]], ids=["all", "some"])
def test_every_stage_runs(tmp_path, monkeypatch, capsys, mask_classes) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [f"--set=--{key}={value}" for key, value in TINY.items()]
    chosen = ["--mask_classes", *mask_classes] if mask_classes else []
    run_dir = main(["--run_dir=runs/main_job", "--pictures=2", "--budget=12", *chosen, *sets])

    assert run_dir.resolve() == tmp_path / "runs" / "main_job"
    assert str(run_dir) in capsys.readouterr().out
    with open(run_dir / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"].split(",")[0] for row in rows] == [
        "heatmap segmenter (untied)",
        "multi-task U-Net",
        "CAM",
        "Grad-CAM",
        "input x gradient",
    ]
    assert all(0 <= float(row["miou"]) <= 1 for row in rows)
    scores = [[float(row[f"iou/{k}"]) for k in range(10)] for row in rows]
    if mask_classes:
        for name, part in (("iou with masks", slice(8)), ("iou without masks", slice(8, None))):
            expected = [np.mean([v for v in one[part] if v == v] or [np.nan]) for one in scores]
            assert [float(row[name]) for row in rows] == pytest.approx(expected, nan_ok=True)
        saved = [yaml.safe_load((run_dir / name / "config.yaml").read_text()) for name in ("heatmap", "multitask_unet")]
        assert [config["data"]["mask_classes"] for config in saved] == [mask_classes] * 2
    else:
        assert "iou with masks" not in rows[0]
    assert (run_dir / "results.md").read_text().count("\n") == 2 + len(rows)
    budgets = [json.loads((run_dir / name / "label_budget.json").read_text()) for name in ("heatmap", "multitask_unet")]
    assert budgets[0] == budgets[1] and len(budgets[0]["names"]) == 12
    for folder, count in (("masks", 2), ("overlays", 2)):
        assert len(list((run_dir / folder).glob("*.png"))) == count
    with Image.open(run_dir / "masks" / "test-00000.png") as mask, Image.open(run_dir / "picture.png") as picture:
        assert np.asarray(mask).shape == (64, 64) and picture.size[0] > 500
    assert len(list((run_dir / "heatmaps").glob("test-00000-*.png"))) >= 2  # background and at least one digit
    assert not list(run_dir.rglob("*.tmp"))


def test_table_tells_missing_numbers(tmp_path) -> None:
    write_table(tmp_path, [Row("a", {"miou": 0.5, "iou/cow": 0.25}, 12.4), Row("b", {}, 0.0)])
    with open(tmp_path / "results.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["miou"], first["iou/cow"]) == ("0.5", "0.25") and math.isnan(float(second["miou"]))
    assert "| a | 0.500 | nan |" in (tmp_path / "results.md").read_text()


def test_overlay_tints_objects_only() -> None:
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    mask = np.array([[0, 1], [0, 0]])
    tinted = overlay(image, mask, alpha=0.5)
    assert (tinted[mask == 0] == 100).all()
    assert tinted[0, 1].tolist() == [114, 50, 50]  # half of VOC's colour (128, 0, 0)


def test_the_length_is_in_whole_epochs(capsys) -> None:
    for steps in ("150", "0", "many"):
        with pytest.raises(SystemExit):
            main([f"--steps={steps}"])
        assert "multiple of 100" in capsys.readouterr().err
