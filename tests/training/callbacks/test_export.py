from __future__ import annotations

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from tests.training.tiny import TinyData, make_batch, make_task, make_trainer
from tw_seg.training.callbacks import ExportClassifier
from tw_seg.training.callbacks.export import find_best_checkpoint
from tw_seg.training.task import SegmentationTask

pytestmark = pytest.mark.usefixtures("stub")


def test_the_best_checkpoints_classifier_is_exported(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/miou", mode="max")
    callbacks = [checkpoint, ExportClassifier()]
    trainer = make_trainer(tmp_path, max_epochs=3, callbacks=callbacks, enable_checkpointing=True)
    task = make_task(lr=0.1)
    trainer.fit(task, datamodule=TinyData())
    assert find_best_checkpoint(trainer) == checkpoint.best_model_path != ""
    best = SegmentationTask.load_from_checkpoint(checkpoint.best_model_path).model.classifier.state_dict()
    exported = load_file(tmp_path / "classifier.safetensors")
    assert exported.keys() == best.keys()
    assert all(torch.equal(value, best[name]) for name, value in exported.items())
    make_task(warm_start=str(tmp_path / "classifier.safetensors"))


def test_without_a_checkpoint_the_last_weights_are_exported(tmp_path):
    task = make_task("heatmap")
    trainer = make_trainer(tmp_path, callbacks=[ExportClassifier()])
    trainer.fit(task, datamodule=TinyData([make_batch(2, size=32)], [make_batch(2, size=32)]))
    state = task.model.classifier.state_dict()
    exported = load_file(tmp_path / "classifier.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in state.items())
    for model in ("heatmap", "classifier", "unet", "multitask_unet", "cam"):
        make_task(model, warm_start=str(tmp_path / "classifier.safetensors"))


def test_a_unet_exports_nothing(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[ExportClassifier()])
    trainer.fit(make_task("unet"), datamodule=TinyData([make_batch(2, size=32)], [make_batch(2, size=32)]))
    assert not list(tmp_path.iterdir())
