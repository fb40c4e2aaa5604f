from __future__ import annotations

import copy
import csv
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from safetensors.torch import load_file

from tests.training.tiny import NAMES, TinyData, make_batch, make_task, make_trainer
from tw_seg.errors import InputError
from tw_seg.training.callbacks import (
    ExampleImages,
    ExportClassifier,
    PredictionWriter,
    StepSeed,
    best_checkpoint,
)
from tw_seg.training.task import SegmentationTask

pytestmark = pytest.mark.usefixtures("stub")


# ------------------------------------------------------------------------------------------------- seeds


class Draws(pl.Callback):
    """Draws a number from every generator in every step."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float]] = []

    def on_train_batch_start(self, *_) -> None:
        self.found.append((torch.rand(1).item(), np.random.rand(), random.random()))


def draws(folder, seed: int, *, before: int) -> list[tuple[float, float, float]]:
    pl.seed_everything(before)
    callback = Draws()
    trainer = make_trainer(folder, max_epochs=2, callbacks=[StepSeed(seed), callback])
    trainer.fit(make_task(), datamodule=TinyData())
    return callback.found


def test_every_step_has_its_own_numbers_whatever_was_drawn_before(tmp_path):
    found = draws(tmp_path, 0, before=1)
    assert found == draws(tmp_path, 0, before=2)
    assert len(set(found)) == len(found) == 6
    assert not set(found) & set(draws(tmp_path, 1, before=1))


def test_with_accumulated_gradients_the_parts_of_a_step_differ(tmp_path):
    callback = Draws()
    trainer = make_trainer(tmp_path, accumulate_grad_batches=3, callbacks=[StepSeed(), callback])
    trainer.fit(make_task(), datamodule=TinyData())
    assert trainer.global_step == 1
    assert len(set(callback.found)) == 3


def test_dropout_repeats(tmp_path):
    task = make_task(model_kwargs={"dropout": 0.5})
    twin = copy.deepcopy(task)
    for one, seed in ((task, 1), (twin, 2)):
        torch.manual_seed(seed)
        make_trainer(tmp_path, callbacks=[StepSeed()]).fit(one, datamodule=TinyData())
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), twin.parameters(), strict=True))


# ----------------------------------------------------------------------------------------------- pictures


def test_examples_become_pictures_in_the_run_directory(tmp_path):
    callback = ExampleImages(every_n_epochs=2, count=3, heatmaps=1)
    batches = [make_batch(2, total=2, seed=seed, native=24) for seed in range(3)]
    batches[0] = batches[0]._replace(names=("folder/a", "b"))
    trainer = make_trainer(tmp_path, max_epochs=3, callbacks=[callback], num_sanity_val_steps=1)
    trainer.fit(make_task(), datamodule=TinyData([], batches))
    found = sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.*"))
    assert found == ["epoch-0001/b.png", "epoch-0001/folder__a.png", "epoch-0001/image-1-0.png"]
    objects = int(batches[0].labels[0, 1:].any())
    with Image.open(tmp_path / "images" / "epoch-0001" / "folder__a.png") as picture:
        assert picture.size == ((3 + objects) * 16 + (2 + objects) * 2, 16)


def test_examples_of_a_model_without_masks_are_none(tmp_path):
    task = make_task(model_kwargs={"masks": False})
    make_trainer(tmp_path, callbacks=[ExampleImages(1)]).fit(task, datamodule=TinyData())
    assert not (tmp_path / "images").exists()


def test_examples_go_to_wandb_as_integer_masks(tmp_path, monkeypatch):
    sent: dict[str, dict] = {}

    def log_image(self, key, images, step=None, **kwargs):
        sent[key] = {"images": images, "step": step, **kwargs}

    monkeypatch.setattr(WandbLogger, "log_image", log_image)
    monkeypatch.setattr(WandbLogger, "experiment", property(lambda self: _Silent()))
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    callback = ExampleImages(1, count=1)
    batch = make_batch(1, total=1)
    batch.labels[:] = torch.tensor([1.0, 0.0, 1.0])
    make_trainer(tmp_path, callbacks=[callback], logger=logger).fit(make_task(), datamodule=TinyData([], [batch]))
    assert set(sent) == {"val/masks/image-0-0", "val/heatmaps/image-0-0"}
    masks = sent["val/masks/image-0-0"]["masks"][0]
    assert set(masks) == {"mask", "predicted"}
    for layer in masks.values():
        assert layer["mask_data"].dtype == np.uint8
        assert layer["mask_data"].shape == (16, 16)
        assert layer["class_labels"] == {0: "background", 1: "cat", 2: "dog", 255: "ignored"}
    assert np.array_equal(masks["mask"]["mask_data"], batch.masks[0].numpy())
    assert sent["val/heatmaps/image-0-0"]["caption"] == ["image-0-0: dog"]
    assert not (tmp_path / "images").exists()


class _Silent:
    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None

    config = property(lambda self: _Silent())


@pytest.mark.parametrize("name", ["every_n_epochs", "count", "heatmaps"])
def test_examples_refuse_negative_numbers(name):
    with pytest.raises(InputError, match=name):
        ExampleImages(**{name: -1})


# -------------------------------------------------------------------------------------------- predictions


def test_predictions_are_written_at_native_size(tmp_path):
    batches = [make_batch(2, total=2, seed=0, native=24), make_batch(2, total=2, seed=1, native=20)]
    batches[1] = batches[1]._replace(names=("sub/x", "y"))
    trainer = make_trainer(tmp_path, callbacks=[PredictionWriter()])
    predictions = trainer.predict(make_task(), datamodule=TinyData([], batches))
    folder = tmp_path / "predictions"
    names = ["image-0-0.png", "image-0-1.png", "sub__x.png", "y.png"]
    assert sorted(path.name for path in (folder / "masks").iterdir()) == names
    with Image.open(folder / "masks" / "sub__x.png") as picture:
        assert np.array_equal(np.array(picture), predictions[1].masks[0].numpy())
        assert picture.size == (20, 20)
    with open(folder / "probabilities.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", *NAMES]
    assert [row[0] for row in rows[1:]] == [name for batch in batches for name in batch.names]
    written = np.array([row[1:] for row in rows[1:]], dtype=float)
    assert np.allclose(written, torch.cat([p.probabilities for p in predictions]).numpy(), atol=1e-6)


def test_predictions_of_a_classifier_are_probabilities_only(tmp_path):
    task = make_task(model_kwargs={"masks": False})
    make_trainer(tmp_path, callbacks=[PredictionWriter()]).predict(task, datamodule=TinyData())
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["probabilities.csv"]


# ------------------------------------------------------------------------------------------------- export


def test_the_best_checkpoints_classifier_is_exported(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/miou", mode="max")
    callbacks = [checkpoint, ExportClassifier()]
    trainer = make_trainer(tmp_path, max_epochs=3, callbacks=callbacks, enable_checkpointing=True)
    task = make_task(lr=0.1)
    trainer.fit(task, datamodule=TinyData())
    assert best_checkpoint(trainer) == checkpoint.best_model_path != ""
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


# ---------------------------------------------------------------------------------------------------- EMA


def test_averaged_weights_are_validated_and_saved(tmp_path):
    """Lightning's own callback, with our task: average of the weights after every step."""
    average, after, validated = EMAWeightAveraging(decay=0.5), [], []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, task, *_):
            after.append(task.model.offset.detach().clone())

        def on_validation_batch_start(self, trainer, task, *_):
            validated.append(task.model.offset.detach().clone())

    trainer = make_trainer(tmp_path, callbacks=[average, Record()])
    task = make_task(lr=0.1)
    trainer.fit(task, datamodule=TinyData())
    expected = after[0]
    for weights in after[1:]:
        expected = 0.5 * expected + 0.5 * weights
    torch.testing.assert_close(validated[-1], expected)
    torch.testing.assert_close(task.model.offset.detach(), expected)
    assert not torch.equal(after[-1], expected)
