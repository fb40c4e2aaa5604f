from __future__ import annotations

import csv
import json

import pytest
import torch

from tests.training.tiny import NAMES, TinyData, make_batch, make_task, make_trainer
from tw_seg.errors import DataError, InputError
from tw_seg.training.callbacks import TestReport

pytestmark = pytest.mark.usefixtures("stub")


def run(folder, batches, report, **kwargs):
    trainer = make_trainer(folder, callbacks=[report], **kwargs)
    (scores,) = trainer.test(make_task(), datamodule=TinyData([], batches), verbose=False)
    return scores


@pytest.fixture
def batches():
    return [make_batch(labelled, total=4, native=24, seed=seed) for seed, labelled in enumerate((4, 2, 0))]


def test_its_scores_are_those_that_test_logs(tmp_path, batches):
    scores = run(tmp_path, batches, TestReport(resamples=20, show=1))
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["classes"] == NAMES and content["facts"]["images"] == "12, 6 with a mask"
    for name, logged in (("miou", "miou"), ("dice", "dice"), ("pixel_acc", "pixel_acc"), ("map", "cls/map")):
        assert content["overall"][name]["value"] == pytest.approx(scores[f"test/{logged}"], abs=1e-6)
    for k, name in enumerate(NAMES):
        assert content["per_class"]["iou"][k]["value"] == pytest.approx(scores[f"test/iou/{name}"], abs=1e-6)
    with open(tmp_path / "report" / "images.csv") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "image-0-3: mIoU" in (tmp_path / "report" / "report.html").read_text()


def test_groups_come_from_a_table(tmp_path, batches):
    names = [name for batch in batches for name in batch.names]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["image;tile", *(f"{name}.jpg;{i // 6}" for i, name in enumerate(names))]))
    run(tmp_path, batches, TestReport(20, str(table), group_column="tile"))
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["facts"]["images"] == "12, 6 with a mask in 2 groups (tile)"
    with pytest.raises(DataError, match="no column 'shot'; found image, tile"):
        run(tmp_path, batches, TestReport(20, str(table), group_column="shot"))
    table.write_text("image,tile\nother,1")
    with pytest.raises(DataError, match="12 test images have no group, 'image-0-0' first"):
        run(tmp_path, batches, TestReport(20, str(table), group_column="tile"))


def test_an_image_level_classifier_has_a_report_too(tmp_path, batches):
    trainer = make_trainer(tmp_path, callbacks=[TestReport(resamples=0)])
    trainer.test(make_task(model_kwargs={"masks": False}), datamodule=TinyData([], batches), verbose=False)
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["overall"]["miou"]["value"] is None and 0 < content["overall"]["map"]["value"] <= 1


def test_a_trial_run_writes_nothing_and_numbers_are_checked(tmp_path, batches):
    run(tmp_path, batches, TestReport(), fast_dev_run=True)
    assert not (tmp_path / "report").exists()
    with pytest.raises(InputError, match="resamples must be a whole number >= 0"):
        TestReport(-1)


def test_images_without_any_labelled_pixel_do_no_harm(tmp_path, batches):
    batch = batches[0]._replace(native_masks=tuple(torch.full((24, 24), 255) for _ in range(4)))
    run(tmp_path, [batch, batches[1]], TestReport(resamples=20))
    with open(tmp_path / "report" / "images.csv") as file:
        assert [row["miou"] for row in csv.DictReader(file)][:4] == [""] * 4
