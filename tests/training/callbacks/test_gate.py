from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

from tests.cli.test_lightning import CONFIG
from tests.training.tiny import TinyData, make_batch, make_task, make_trainer
from tw_seg.cli import main
from tw_seg.cli.lightning import run_command
from tw_seg.errors import InputError
from tw_seg.metrics import predict_masks
from tw_seg.models.gated import GatedSegmenter, GateReport, calibrate_gate, select_classes
from tw_seg.training.callbacks import GatedInference
from tw_seg.training.task import SegmentationTask
from tw_seg.types import Batch

READ_OUT = {"decoder_kwargs": {"read_out": "layer3"}}


def create() -> SegmentationTask:
    task = make_task("heatmap", model_kwargs=READ_OUT).eval()
    with torch.no_grad():
        task.model.offset.copy_(torch.tensor([-1.0, 0.0, 1.0]))  # without a gate an object wins
    return task


@pytest.fixture
def data() -> TinyData:
    return TinyData(evaluation=[make_batch(3, size=32, native=24, seed=seed) for seed in range(2)])


def gated_trainer(folder: Path, tolerance: float | None, **kwargs: Any) -> pl.Trainer:
    return make_trainer(folder, callbacks=[GatedInference(tolerance)], **kwargs)


def expected_masks(task: SegmentationTask, batches: Sequence[Batch], gate: float) -> list[torch.Tensor]:
    gated = GatedSegmenter(task.model, gate)
    with torch.no_grad():
        return [mask for batch in batches for mask in predict_masks(gated(batch.images).mask_logits, batch.sizes)]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What Lightning logs, which hands it on only if pytest's log was ready when Lightning was imported."""
    monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "propagate", True)
    caplog.set_level("INFO")
    return caplog


def test_predict_finds_a_gate_uses_it_and_writes_it_down(tmp_path, data, logged):
    task = create()
    found = gated_trainer(tmp_path, 1.0).predict(task, datamodule=data)
    report = calibrate_gate(task.model, data.evaluation, 1.0)
    assert report.gate > 0.9
    assert 1 <= report.decoded < 3
    assert GateReport(**json.loads((tmp_path / "gate.json").read_text())) == report
    assert str(report) in logged.text
    masks = [mask for prediction in found for mask in prediction.masks]
    expected = expected_masks(task, data.evaluation, report.gate)
    full = expected_masks(task, data.evaluation, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(masks, full, strict=True))


def test_without_a_tolerance_nothing_is_gated(tmp_path, data):
    task = create()
    gated_trainer(tmp_path / "gated", 1.0).predict(task, datamodule=data)  # leaves no gate behind
    found = gated_trainer(tmp_path, None).predict(task, datamodule=data)
    masks = [mask for prediction in found for mask in prediction.masks]
    full = expected_masks(task, data.evaluation, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(masks, full, strict=True))
    assert not (tmp_path / "gate.json").exists()
    (scores,) = gated_trainer(tmp_path, None).test(task, datamodule=data, verbose=False)
    assert not any("gate" in name for name in scores)


def test_test_logs_the_gated_miou_beside_the_metrics(tmp_path, data):
    task = create()
    trainer = gated_trainer(tmp_path, 1.0)
    (scores,) = trainer.test(task, datamodule=data, verbose=False)
    report = calibrate_gate(task.model, data.evaluation, 1.0)  # TinyData: val and test are the same images
    assert scores["test/gate/miou"] == pytest.approx(report.gated_miou)
    assert scores["test/gate/decoded"] == pytest.approx(report.decoded)
    assert scores["test/gate/probability"] == pytest.approx(report.gate)
    assert scores["test/gate/miou"] != pytest.approx(scores["test/miou"], abs=1e-3)
    (ungated,) = make_trainer(tmp_path).test(task, datamodule=data, verbose=False)
    assert {name: value for name, value in scores.items() if "/gate/" not in name} == pytest.approx(
        ungated, nan_ok=True
    )
    assert trainer.test(task, datamodule=data, verbose=False) == [scores]  # metrics start afresh


def test_batches_without_masks_are_no_part_of_the_gated_metrics(tmp_path, data):
    task = create()
    (scores,) = gated_trainer(tmp_path, 0.001).test(task, datamodule=data, verbose=False)
    more = TinyData(evaluation=[*data.evaluation, make_batch(0, size=32, native=24, seed=9)])
    (found,) = gated_trainer(tmp_path, 0.001).test(task, datamodule=more, verbose=False)
    for name in ("miou", "decoded", "probability"):
        assert found[f"test/gate/{name}"] == pytest.approx(scores[f"test/gate/{name}"])


def test_training_and_validation_know_no_gate(tmp_path, data, monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("gated")

    monkeypatch.setattr(GatedSegmenter, "forward", refuse)
    data.train = [make_batch(2, size=32)]
    trainer = gated_trainer(tmp_path, 0.001)
    trainer.fit(create().train(), datamodule=data)
    assert not any("gate" in name for name in trainer.logged_metrics)
    assert not (tmp_path / "gate.json").exists()


def test_mixed_precision_calibrates_as_it_predicts(tmp_path, data):
    task = create()
    found = gated_trainer(tmp_path, 1.0, precision="bf16-mixed").predict(task, datamodule=data)
    with torch.autocast("cpu", torch.bfloat16):
        report = calibrate_gate(task.model, data.evaluation, 1.0)
        expected = expected_masks(task, data.evaluation, report.gate)
    assert GateReport(**json.loads((tmp_path / "gate.json").read_text())) == report
    masks = [mask for prediction in found for mask in prediction.masks]
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))


def test_a_checkpoint_knows_no_gate(tmp_path, data):
    task = create()
    trainer = gated_trainer(tmp_path, 0.5)
    trainer.test(task, datamodule=data, verbose=False)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    saved = torch.load(tmp_path / "task.ckpt", weights_only=True)
    assert not any("gate" in name for name in (*saved, *saved["hyper_parameters"], *saved["state_dict"]))
    assert saved["state_dict"].keys() == create().state_dict().keys()


def test_a_failed_run_leaves_no_gate_behind(tmp_path, data, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    task = create()
    monkeypatch.setattr(SegmentationTask, "predict_step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        gated_trainer(tmp_path, 1.0).predict(task, datamodule=data)
    assert task.segment is None


def test_what_cannot_be_gated_is_refused(tmp_path, data):
    with pytest.raises(InputError, match="gate.tolerance needs a model .*'heatmap', got 'classifier'"):
        gated_trainer(tmp_path, 0.001).test(make_task("classifier"), datamodule=data)
    for tolerance in (-1.0, math.nan):
        with pytest.raises(InputError, match="tolerance must be"):
            GatedInference(tolerance)
    with pytest.raises(InputError, match="pass the trainer a datamodule"):
        gated_trainer(tmp_path, 0.001).predict(create(), dataloaders=data.val_dataloader())
    unlabelled = TinyData(evaluation=[make_batch(0, size=32)])
    with pytest.raises(InputError, match="labelled pixels"):
        gated_trainer(tmp_path, 0.001).predict(create(), datamodule=unlabelled)


def test_from_the_command_line(tmp_path, monkeypatch, logged):
    """A model that was trained without a gate, tested and used with one."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["fit", "--config=config.yaml", "--run_dir=run"]) == 0
    again = ["--config=run/config.yaml", "--ckpt_path=best", "--gate.tolerance=0.001"]
    assert main(["test", *again]) == 0
    header = Path("run/metrics/test/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"test/gate/miou", "test/gate/decoded", "test/gate/probability", "test/miou"} <= set(header)
    report = GateReport(**json.loads(Path("run/gate.json").read_text()))
    assert abs(report.gated_miou - report.miou) <= report.tolerance == 0.001
    assert str(report) in logged.text

    Path("run/gate.json").unlink()
    cli = run_command(["predict", *again])
    assert GateReport(**json.loads(Path("run/gate.json").read_text())) == report
    model, batch = cli.model.model.eval(), next(iter(cli.datamodule.predict_dataloader()))
    masks = predict_masks(GatedSegmenter(model, report.gate)(batch.images).mask_logits, batch.sizes)
    for name, mask in zip(batch.names, masks, strict=True):
        with Image.open(f"run/predictions/masks/{name}.png") as picture:
            assert np.array_equal(np.asarray(picture), mask.numpy())
    assert select_classes(model(batch.images).logits, report.gate)[:, 0].all()
